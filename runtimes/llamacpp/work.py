"""What the decode loop works on: jobs, their choices, and the slots that hold them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtimes.engine import Event, GenerateRequest
from runtimes.llamacpp.constraints import Constraint
from runtimes.llamacpp.plan import OutputParser, TextPlan
from runtimes.llamacpp.sampler import Sampler
from runtimes.llamacpp.slots import SlotView, Tokens


@dataclass(eq=False)
class Job:
    """One generate request on its way through the loop."""

    id: int
    request: GenerateRequest
    prompt: Tokens
    plan: TextPlan
    seed: int
    arrived: float
    first: list[Event] = field(default_factory=list)
    """What is said when its computation begins."""
    open: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    placed: bool = False
    started: float | None = None
    """When the first token of its prompt was computed."""
    gone: bool = False


@dataclass(eq=False)
class Choice:
    """One of the `n` answers of a job."""

    job: Job
    index: int
    sampler: Sampler
    constraint: Constraint | None
    parser: OutputParser
    budget: int
    generated: int = 0
    next_token: int = -1


@dataclass(eq=False)
class Slot:
    """One sequence of the native context: what it holds, and who is using it."""

    index: int
    buffer: Tokens
    length: int = 0
    choice: Choice | None = None
    partition: str = ""
    last_used: int = 0

    @property
    def held(self) -> Tokens:
        return self.buffer[: self.length]

    @property
    def prefilling(self) -> bool:
        return self.choice is not None and self.choice.next_token < 0

    def view(self) -> SlotView:
        coming = self.choice.job.prompt if self.choice is not None and self.prefilling else self.held
        return SlotView(self.index, self.choice is None, self.held, coming, self.partition, self.last_used)


@dataclass
class Counters:
    """Totals since the start, for the status reply."""

    generated: int = 0
    prefilled: int = 0
    reused: int = 0
    steps: int = 0
