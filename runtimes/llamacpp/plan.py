"""What a request means in text: its prompt, the grammar that its answer must follow, how its tokens are read.

This is all that the engine core needs from the text side. The core owns tokens, slots and sampling.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import llguidance
import msgspec

from runtimes.engine import GenerateRequest, InvalidRequest, Unsupported
from runtimes.llamacpp import conversation
from runtimes.llamacpp.constraints import Constraint, Grammar, Grammars, response_grammar, response_schema
from runtimes.llamacpp.injection import ControlStrings, Segment
from runtimes.llamacpp.output import OutputParser
from runtimes.llamacpp.templates import TemplateInfo, TemplateRenderer
from runtimes.llamacpp.tools import (
    GENERIC,
    ToolFormat,
    ToolPlan,
    ToolScanner,
    detect_format,
    read_tools,
    tool_grammar,
)

__all__ = ["ModelTraits", "OutputParser", "Segment", "TextPlan", "TextSide"]


class ModelTraits(msgspec.Struct, frozen=True):
    """What the text side must know about a model; all of it stands in the GGUF file and the manifest."""

    name: str
    template: str | None
    """tokenizer.chat_template; None = the model cannot chat."""
    special_tokens: dict[str, int]
    """Text → id of every control and user-defined token (text as token_to_piece gives it with special=True)."""
    bos_text: str = ""
    eos_text: str = ""
    add_bos: bool = False
    """The vocabulary wants its BOS token before every prompt."""
    default_system: str = ""
    """System message of a chat that has none."""


class TextPlan:
    """One request, ready to run. `constraint` and `parser` are called once for each choice."""

    def __init__(
        self,
        segments: list[Segment],
        *,
        tokens: list[int] | None = None,
        bos: int | None = None,
        grammar: Grammar | None = None,
        stops: list[str] | None = None,
        scanner: Callable[[], ToolScanner] | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        self.segments = segments
        self.tokens = tokens
        self._bos = bos
        self._grammar = grammar
        self._stops = stops or []
        self._scanner = scanner
        self._marks = marks or {}

    def tokenize(self, tokenize: Callable[[bytes, bool], list[int]]) -> list[int]:
        """The prompt's ids. `tokenize(utf8, parse_special)` must not add BOS or EOS by itself."""
        if self.tokens is not None:
            return list(self.tokens)
        ids = [i for segment in self.segments for i in tokenize(segment.text.encode(), segment.trusted)]
        if self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def constraint(self) -> Constraint | None:
        """A fresh constraint at its beginning, or None when the answer is free."""
        return None if self._grammar is None else self._grammar.constraint()

    def parser(self, index: int) -> OutputParser:
        """A fresh parser for choice `index`."""
        scanner = None if self._scanner is None else self._scanner()
        return OutputParser(index, stops=self._stops, scanner=scanner, marks=self._marks)


class TextSide:
    """The text side of one loaded model: its template's process, its grammars."""

    def __init__(
        self,
        traits: ModelTraits,
        tokenizer: llguidance.LLTokenizer,
        n_vocab: int,
        *,
        now: Callable[[], float] = time.time,
        random_text: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`random_text`: 18 or more letters and digits, for the ids of tool calls."""
        self._traits = traits
        self._grammars = Grammars(tokenizer, n_vocab)
        self._random_text = random_text
        self._renderer: TemplateRenderer | None = None
        if traits.template is not None:
            self._renderer = TemplateRenderer(
                traits.template,
                variables={"bos_token": traits.bos_text, "eos_token": traits.eos_text},
                control=ControlStrings(traits.special_tokens),
                now=now,
            )
        self._format: ToolFormat = GENERIC

    @property
    def native_tools(self) -> bool:
        """The model's own template knows tools, in a form that is known here."""
        return self._format is not GENERIC

    @property
    def template_info(self) -> TemplateInfo | None:
        return None if self._renderer is None else self._renderer.info

    async def start(self) -> None:
        """Start the child processes and try the template out. Raises TemplateUnusable, WorkerDied."""
        await asyncio.gather(self._grammars.start(), self._start_template())

    async def _start_template(self) -> None:
        if self._renderer is None:
            return
        await self._renderer.start()
        native = detect_format(self._traits.template or "")
        if native is not None and self._renderer.info.tools:
            self._format = native

    async def close(self) -> None:
        await self._grammars.close()
        if self._renderer is not None:
            await self._renderer.close()

    async def plan(self, request: GenerateRequest, *, prompt_only: bool = False) -> TextPlan:
        """Raises InvalidRequest or Unsupported. `prompt_only`: for counting; no grammar is compiled."""
        if request.messages is None:
            return await self._plan_prompt(request, prompt_only)
        if self._renderer is None:
            raise Unsupported(f"the model `{self._traits.name}` has no chat template", param="messages")
        tools = read_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
        segments = await self._render(self._renderer, request, tools)
        if prompt_only:
            return TextPlan(segments, bos=self._bos())
        form, special = self._format, self._traits.special_tokens
        if tools is None:
            return TextPlan(
                segments,
                bos=self._bos(),
                grammar=await self._response_grammar(request),
                stops=request.stop,
            )
        grammar = tool_grammar(tools, form, special, text_schema=response_schema(request.response_format))
        spelled = form.opening + form.between + form.tail + form.closing
        return TextPlan(
            segments,
            bos=self._bos(),
            grammar=await self._grammars.compile(grammar, param="tools"),
            stops=request.stop,
            scanner=lambda: ToolScanner(tools, form, self._new_call_id),
            marks={token: text for text, token in special.items() if text in spelled},
        )

    async def _plan_prompt(self, request: GenerateRequest, prompt_only: bool) -> TextPlan:
        if request.prompt is None:
            raise InvalidRequest("either `messages` or `prompt` is needed", param="prompt")
        if request.tools:
            raise Unsupported("tools need `messages`", param="tools")
        grammar = None if prompt_only else await self._response_grammar(request)
        if isinstance(request.prompt, list):
            return TextPlan([], tokens=request.prompt, grammar=grammar, stops=request.stop)
        # Whoever writes the whole prompt may write its control tokens too: there is nobody else's text in it.
        segments = [Segment(request.prompt)] if request.prompt else []
        return TextPlan(segments, bos=self._bos(), grammar=grammar, stops=request.stop)

    async def _response_grammar(self, request: GenerateRequest) -> Grammar | None:
        grammar = response_grammar(request.response_format)
        if grammar is None:
            return None
        return await self._grammars.compile(grammar, param="response_format.json_schema.schema")

    async def _render(
        self, renderer: TemplateRenderer, request: GenerateRequest, tools: ToolPlan | None
    ) -> list[Segment]:
        info = renderer.info
        given = conversation.read_messages(request.messages or [])
        messages = conversation.with_system(given, self._traits.default_system)
        if self.native_tools and info.tool_history:
            messages = conversation.native_history(messages, self._format, info)
        else:
            messages = conversation.generic_history(messages, decided=tools is not None)
        offered: list[dict[str, Any]] = []
        if tools is not None and self.native_tools:
            names = {tool.name for tool in tools.tools}
            offered = [t for t in request.tools if t["function"]["name"] in names]
        elif tools is not None:
            messages = conversation.generic_offer(tools, messages, after_result=given[-1]["role"] == "tool")
        segments = await renderer.render_segments(conversation.fit(messages, info), offered)
        if tools is not None and self._format.cue:
            segments = [*segments, Segment(self._format.cue)]
        return segments

    def _bos(self) -> int | None:
        """The BOS id that a prompt must begin with; templates that write it themselves are recognised later."""
        text = self._traits.bos_text
        if not self._traits.add_bos or not text:
            return None
        return self._traits.special_tokens.get(text)

    def _new_call_id(self) -> str:
        text = self._random_text()
        return text[:9] if self._format.short_ids else f"call_{text[:24]}"
