"""Tool calls: how each family of models writes them, the grammar that holds a call, and reading it as it comes.

A `ToolFormat` is one row of a table. A model whose template knows tools uses its own row; every other model uses
`GENERIC`, where the tools stand in a system message and each answer begins with the model's decision.
Once a call has begun the grammar leaves only its arguments open, so the parser meets exactly the form
that is written down here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from runtimes.engine import InvalidRequest, ToolCallDelta, Unsupported
from runtimes.llamacpp.constraints import lark_schema
from runtimes.llamacpp.schema import check_schema
from runtimes.llamacpp.text import held_back

MAX_CALLS = 8
MAX_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class ToolFormat(msgspec.Struct, frozen=True):
    """An answer is `opening` call (`between` call)* `closing`, or text. A call is `head` arguments `tail`."""

    name: str
    trigger: str
    """What begins a call in the middle of text; "" = the decision falls at the answer's very start."""
    opening: str
    """Everything before the first call, trigger included."""
    head: str
    """Before the arguments; NAME stands for the tool's name."""
    tail: str
    between: str
    """Between two calls; "" = this format has one call an answer."""
    closing: str
    refusal: str = ""
    """What the answer begins with when it is no call; not shown to the caller."""
    cue: str = ""
    """Put after the prompt, so that the decision is the first thing that the model writes."""
    short_ids: bool = False
    """The template only takes call ids of nine letters or digits."""

    def head_of(self, tool: str) -> str:
        return self.head.replace("NAME", tool)


HERMES = ToolFormat(
    name="hermes",
    trigger="<tool_call>",
    opening="<tool_call>\n",
    head='{"name": "NAME", "arguments": ',
    tail="}\n</tool_call>",
    between="\n<tool_call>\n",
    closing="",
)
MISTRAL = ToolFormat(
    name="mistral",
    trigger="[TOOL_CALLS]",
    opening="[TOOL_CALLS] [",
    head='{"name": "NAME", "arguments": ',
    tail="}",
    between=", ",
    closing="]",
    short_ids=True,
)
LLAMA3 = ToolFormat(
    name="llama3",
    trigger="",
    opening="",
    head='{"name": "NAME", "parameters": ',
    tail="}",
    between="",
    closing="",
)
GENERIC = ToolFormat(
    name="generic",
    trigger="",
    opening=" ",
    head="NAME ",
    tail="",
    between="\nTool: ",
    closing="",
    refusal=" none\n",
    cue="Tool:",
)


def detect_format(template: str) -> ToolFormat | None:
    """The native format that a chat template's text shows, or None when it is not one that is known here."""
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if re.search(r"\{\s*\\?\"name\\?\":[^}]{0,60}\\?\"parameters\\?\":", template):
        return LLAMA3
    return None


# --- what the caller asked for --------------------------------------------------------------------


_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Tool(msgspec.Struct, frozen=True):
    """One function that may be called, its schema checked."""

    name: str
    description: str
    schema: dict[str, Any]
    strict: bool
    parameters: dict[str, Any] = {}
    """The schema as the caller wrote it: with the descriptions, which no grammar needs."""


class ToolPlan(msgspec.Struct, frozen=True):
    """The tools on offer. `forced`: an answer in text is not allowed."""

    tools: list[Tool]
    forced: bool
    max_calls: int


def read_tools(tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], parallel: bool) -> ToolPlan | None:
    """OpenAI's `tools`, `tool_choice` and `parallel_tool_calls`; None when no tool is on offer.

    Raises InvalidRequest or Unsupported naming the field.
    """
    if not tools:
        if choice not in ("auto", "none"):
            raise InvalidRequest("`tool_choice` asks for a tool but `tools` is empty", param="tool_choice")
        return None
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"there are {len(tools)} tools; at most {MAX_TOOLS} are allowed", param="tools")
    read = [_read_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [tool.name for tool in read]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"the tool `{name}` is given twice", param="tools")
    if choice == "none":
        return None
    forced = choice != "auto"
    if isinstance(choice, Mapping):
        read = [_named(read, choice)]
    elif choice not in ("auto", "required"):
        raise InvalidRequest("`tool_choice` must be auto, none, required or a function", param="tool_choice")
    # A function asked for by name is called once.
    several = parallel and not isinstance(choice, Mapping)
    return ToolPlan(tools=read, forced=forced, max_calls=MAX_CALLS if several else 1)


def _read_tool(tool: Mapping[str, Any], where: str) -> Tool:
    if tool.get("type") != "function":
        raise Unsupported(f"`{where}.type` is not supported; only function tools are", param=f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"`{where}.function` is missing", param=f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"`{where}.function.name` must be 1 to 64 letters, digits, _, . or -", param=f"{where}.function.name"
        )
    strict = bool(function.get("strict"))
    param = f"{where}.function.parameters"
    # OpenAI's meaning: a function without parameters takes none. (`{}` is a schema, which allows any.)
    parameters = function.get("parameters")
    schema = check_schema(_NO_PARAMETERS if parameters is None else parameters, param=param, lenient=not strict)
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequest(f"`{param}.type` must be object", param=param)
    description = str(function.get("description") or "")
    return Tool(name=name, description=description, schema=schema, strict=strict, parameters=parameters or {})


def _named(tools: list[Tool], choice: Mapping[str, Any]) -> Tool:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    for tool in tools:
        if choice.get("type") == "function" and tool.name == name:
            return tool
    raise InvalidRequest(f"`tool_choice` names {json.dumps(name)[:80]}, which is not in `tools`", param="tool_choice")


# --- the grammar --------------------------------------------------------------------------------


def tool_grammar(
    plan: ToolPlan, form: ToolFormat, special: Mapping[str, int], *, text_schema: dict[str, Any] | None = None
) -> str:
    """The Lark grammar of an answer.

    `special`: texts that are single control tokens of the vocabulary, with their ids.
    `text_schema`: the checked schema that an answer without calls must satisfy. Raises Unsupported when the
    format cannot tell such an answer from a call by its first letters.
    """

    def literal(text: str) -> str:
        return _lark_literal(text, special)

    names = [f"tool_{i}" for i in range(len(plan.tools))]
    rules = ["TEXT: /(?s:.*)/", f"call: {' | '.join(names)}"]
    for name, tool in zip(names, plan.tools, strict=True):
        rules.append(f"{name}: {literal(form.head_of(tool.name))} {name}_args {literal(form.tail)}")
        rules.append(f"{name}_args: {lark_schema(tool.schema, lenient=not tool.strict)}")
    calls = "call"
    if form.between and plan.max_calls > 1:
        rules.append(f"between: {literal(form.between)}")
        calls = f"call (between call){{0,{plan.max_calls - 1}}}"
    rules.append(f"calls: {calls} {literal(form.closing)}")
    if plan.forced:
        start = f"{literal(form.opening)} calls"
    elif text_schema is not None:
        if not (form.trigger or form.refusal):
            raise Unsupported(
                "this model cannot choose between tools and `response_format`; set `tool_choice` to none or required",
                param="response_format",
            )
        rules.append(f"answer: {lark_schema(text_schema, lenient=False)}")
        start = f"{literal(form.refusal)} answer | {literal(form.opening)} calls"
    else:
        start = _start_of_choice(form, special, rules, literal)
    return "\n".join(["%llguidance {}", f"start: {start}", *rules, ""])


def _start_of_choice(
    form: ToolFormat, special: Mapping[str, int], rules: list[str], literal: Callable[[str], str]
) -> str:
    """Text or calls, as the model likes."""
    if form.refusal:
        return f"{literal(form.refusal)} TEXT | {literal(form.opening)} calls"
    if not form.trigger:
        # The beginning of a call is reserved for calls; any other text is free.
        rules.append(f"OTHER: TEXT & ~/{_regex(form.head.split('NAME')[0])}(?s:.*)/")
        return "OTHER | calls"
    after = literal(form.opening.removeprefix(form.trigger))
    if form.trigger in special:
        # Spelled out in ordinary tokens it would look like a call that no grammar holds.
        rules.append(f"OTHER: TEXT & ~/(?s:.*){_regex(form.trigger)}(?s:.*)/")
        return f"OTHER | OTHER {literal(form.trigger)} {after} calls"
    # A lazy lexeme ends at the first trigger, which is what switches from text to the call.
    rules.append(f"begin[lazy]: TEXT {literal(form.trigger)}")
    return f"TEXT | begin {after} calls"


def _regex(text: str) -> str:
    return re.escape(text).replace("/", "\\/")


def _lark_literal(text: str, special: Mapping[str, int]) -> str:
    known = sorted((t for t in special if t in text), key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, known)) + ")", text) if known else [text]
    return " ".join(f"<[{special[p]}]>" if p in special else json.dumps(p) for p in parts if p) or '""'


# --- reading an answer as it comes ----------------------------------------------------------------


class ToolScanner:
    """Sans-I/O: text of an answer in any pieces → shown text and tool call pieces.

    Text is held back only as long as it could be the beginning of a call. A call that has begun but does not
    keep to the format (no grammar was there to hold it) comes out as text.
    """

    def __init__(self, plan: ToolPlan, form: ToolFormat, new_id: Callable[[], str]) -> None:
        self._form = form
        self._forced = plan.forced
        self._new_id = new_id
        self._heads = {form.head_of(tool.name): tool.name for tool in plan.tools}
        self._buffer = ""
        self._arguments = JsonEnd()
        # Before the first call everything from `opening` on is expected at once.
        self._state: Callable[[list[str], list[ToolCallDelta]], bool] = (
            self._in_text if form.trigger else self._at_start
        )
        self.calls = 0
        """Calls that have begun."""
        self.complete = 0
        """Calls whose arguments are whole."""

    @property
    def plain(self) -> bool:
        """The answer so far is text and nothing else."""
        return self.calls == 0 and self._state == self._in_text

    def feed(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Return the text to show and the pieces of calls that became known."""
        self._buffer += text
        shown: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._state(shown, calls):
            pass
        return "".join(shown), calls

    def flush(self) -> str:
        """The answer ended: return the text that was held back. An unfinished call stays unfinished, and a decision
        between a call and text that was cut short is nothing to show."""
        text, self._buffer = self._buffer, ""
        undecided = bool(self._form.refusal) and self._state != self._in_text
        return "" if self.calls or self._forced or undecided else text

    # Each state consumes from the buffer and returns whether another look is worth it.

    def _in_text(self, shown: list[str], _: list[ToolCallDelta]) -> bool:
        trigger = self._form.trigger
        if not trigger:
            shown.append(self._buffer)
            self._buffer = ""
            return False
        at = self._buffer.find(trigger)
        if at < 0:
            keep = held_back(self._buffer, [trigger])
            shown.append(self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        shown.append(self._buffer[:at])
        self._buffer = self._buffer[at:]
        self._state = self._at_opening
        return True

    def _at_start(self, shown: list[str], calls: list[ToolCallDelta]) -> bool:
        refusal = self._form.refusal
        if refusal and self._buffer.startswith(refusal):
            self._buffer = self._buffer[len(refusal) :]
            self._state = self._in_text
            return True
        if refusal and refusal.startswith(self._buffer):
            return False
        return self._at_opening(shown, calls)

    def _at_opening(self, shown: list[str], calls: list[ToolCallDelta]) -> bool:
        if self._begin_call(self._form.opening, calls):
            return True
        if any((self._form.opening + head).startswith(self._buffer) for head in self._heads):
            return False
        # Not a call after all: let its first character go and look for the next trigger.
        shown.append(self._buffer[:1])
        self._buffer = self._buffer[1:]
        self._state = self._in_text
        return True

    def _begin_call(self, before: str, calls: list[ToolCallDelta]) -> bool:
        for head, name in self._heads.items():
            if self._buffer.startswith(before + head):
                self._buffer = self._buffer[len(before + head) :]
                calls.append(ToolCallDelta(index=self.calls, id=self._new_id(), name=name))
                self.calls += 1
                self._arguments = JsonEnd()
                self._state = self._in_arguments
                return True
        return False

    def _in_arguments(self, _: list[str], calls: list[ToolCallDelta]) -> bool:
        if not self._buffer:
            return False
        end = self._arguments.feed(self._buffer)
        piece = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(piece) :]
        calls.append(ToolCallDelta(index=self.calls - 1, arguments=piece))
        if end is None:
            return False
        self.complete += 1
        self._state = self._after_arguments
        return True

    def _after_arguments(self, _: list[str], calls: list[ToolCallDelta]) -> bool:
        # Nothing but another call or the closing can follow, and neither is shown.
        return bool(self._form.between) and self._begin_call(self._form.tail + self._form.between, calls)


class JsonEnd:
    """Finds where a JSON object ends, in text that comes in any pieces."""

    _MARKS = re.compile(r'["\\{}\[\]]')

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """Return the index just after the object's end, or None while it goes on."""
        at = 0
        if self._escaped and text:
            self._escaped = False
            at = 1
        while (mark := self._MARKS.search(text, at)) is not None:
            at = mark.end()
            char = mark.group()
            if self._in_string:
                if char == "\\":
                    if at == len(text):
                        self._escaped = True
                    at += 1
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None
