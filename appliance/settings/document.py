"""A YAML text as plain data that still knows where each key stood.

Built on PyYAML's event stream rather than its constructor, for three reasons: every key keeps its
line, hostile files are bounded (depth, aliases, size), and scalars stay the text that was written.
YAML 1.1 would turn `off` into false, `10:30` into 630 and `1_000` into 1000 before anybody knew
which field they were for; here the typed field decides (see `values`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 512 * 1024
MAX_DEPTH = 32
MAX_NODES = 50_000
"""Keys, values and list items after aliases are followed: what stops a "billion laughs" file."""

MAX_FINDINGS = 100
"""Enough to work on; a file with more is another kind of file."""

Path = tuple[str | int, ...]
"""Where a value stands: ("routes", 0, "model")."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_STR_TAG = "tag:yaml.org,2002:str"


class Plain(str):
    """A scalar written without quotes; a quoted one is an ordinary `str`."""

    __slots__ = ()


@dataclass(frozen=True)
class Finding:
    """Something wrong at a place in the document: what, and what to do about it."""

    path: Path
    message: str
    cure: str
    line: int | None = None
    """Where known already (syntax); otherwise the path is looked up."""


@dataclass
class Document:
    """`data` holds dicts, lists, `str`, `Plain` and None. Lines start at 1."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """The line of the key or list item; of its nearest ancestor when it is not in the file."""
        for end in range(len(path), 0, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return line
        return None

    def add(self, finding: Finding) -> None:
        """Note a fault of the text, once: an aliased mapping is expanded at each of its uses."""
        if any(known.line == finding.line and known.message == finding.message for known in self.findings):
            return
        if len(self.findings) >= MAX_FINDINGS:
            raise _Refused(finding.line or 1, f"more than {MAX_FINDINGS} faults up to here", "correct the others first")
        self.findings.append(finding)


@dataclass
class _Node:
    line: int
    scalar: str | None = None
    """Set for scalars only; `Plain` or `str`. None with `items` and `pairs` None is YAML's null."""
    items: list[_Node] | None = None
    pairs: list[tuple[_Node, _Node]] | None = None


class _Refused(Exception):
    """Reading cannot go on."""

    def __init__(self, line: int, message: str, cure: str) -> None:
        super().__init__(message)
        self.finding = Finding((), message, cure, line)


def parse(raw: bytes | str) -> Document:
    """Read one YAML document. Never raises for what the text holds: see `Document.findings`."""
    document = Document()
    try:
        root = _Composer(_decode(raw), document).compose()
        if root is not None:
            document.data = _Expander(document).expand(root, (), 0)
    except _Refused as refused:
        document.findings.append(refused.finding)
        document.data = None
    return document


def _decode(raw: bytes | str) -> str:
    if len(raw) > MAX_BYTES:
        raise _Refused(1, f"the file is larger than {MAX_BYTES // 1024} KiB", "check that this is the right file")
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Refused(line, "the file is not UTF-8 text", "save it with the UTF-8 encoding") from None


class _Composer:
    """Events → nodes. Anchors become shared nodes; explicit tags are refused."""

    def __init__(self, text: str, document: Document) -> None:
        self._text = text
        self._document = document
        self._anchors: dict[str, _Node] = {}

    def compose(self) -> _Node | None:
        try:
            events: Iterator[Any] = iter(yaml.parse(self._text, Loader=yaml.SafeLoader))
            root: _Node | None = None
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        mark: Any = event.start_mark
                        cure = "keep one document in the file: remove the line '---'"
                        raise _Refused(mark.line + 1, "a second document starts here", cure)
                    root = self._node(next(events), events, 0)
            return root
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise _Refused(line, "a character that YAML does not allow", "remove the control character") from None
        except yaml.MarkedYAMLError as error:
            raise _syntax(error) from None

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        line: int = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels", "no setting is that deep")
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name not in self._anchors:
                raise _Refused(line, f"the alias *{name} has no anchor", f"write &{name} before its first use")
            return self._anchors[name]
        self._check_tag(event, line)
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(line, scalar=_scalar(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[_Node] = []
            while not isinstance(inner := next(events), yaml.SequenceEndEvent):
                items.append(self._node(inner, events, depth + 1))
            node = _Node(line, items=items)
        else:
            pairs: list[tuple[_Node, _Node]] = []
            while not isinstance(inner := next(events), yaml.MappingEndEvent):
                key = self._node(inner, events, depth + 1)
                pairs.append((key, self._node(next(events), events, depth + 1)))
            node = _Node(line, pairs=pairs)
        # Only a finished node gets its name, so that no structure can hold itself.
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _check_tag(self, event: Any, line: int) -> None:
        if event.tag is not None and event.tag not in ("!", _STR_TAG):
            self._document.add(Finding((), f"the YAML tag {event.tag!r} is not used here", "remove the tag", line))


def _scalar(event: Any) -> str | None:
    text: str = event.value
    if event.style is not None or event.tag is not None:
        return text
    return None if text in _NULLS else Plain(text)


def _syntax(error: yaml.MarkedYAMLError) -> _Refused:
    mark: Any = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be read"
    cure = "check the indentation, colons, brackets and quotes on this line and the one before"
    if "\\t" in problem:
        cure = "indent with spaces, not with tabs"
    elif "mapping values are not allowed" in problem:
        cure = "put text that holds ': ' in quotes, and check the indentation"
    elif problem.startswith(("found character '@'", "found character '`'")):
        cure = "put the text in quotes"
    return _Refused(mark.line + 1 if mark else 1, f"not valid YAML: {problem}", cure)


class _Expander:
    """Nodes → data and lines, with aliases followed, `<<` merged, and the total bounded."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def expand(self, node: _Node, path: Path, depth: int) -> Any:
        self._count(node, depth)
        if node.items is not None:
            values = []
            for index, item in enumerate(node.items):
                self._document.lines[(*path, index)] = item.line
                values.append(self.expand(item, (*path, index), depth + 1))
            return values
        if node.pairs is not None:
            return {
                name: self.expand(value, (*path, name), depth + 1)
                for name, value in self._members(node, path, depth).items()
            }
        return node.scalar

    def _count(self, node: _Node, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(node.line, f"more than {MAX_NODES} values once aliases are followed", "use fewer aliases")
        if depth > MAX_DEPTH:
            raise _Refused(node.line, f"nested deeper than {MAX_DEPTH} levels", "use fewer aliases in aliases")

    def _members(self, node: _Node, path: Path, depth: int) -> dict[str, _Node]:
        """A mapping's own keys, then the keys that `<<` brings in. Records lines, reports duplicates."""
        own: dict[str, _Node] = {}
        lines: dict[str, int] = {}
        merges: list[_Node] = []
        for key, value in node.pairs or []:
            if key.items is not None or key.pairs is not None:
                self._find(path, key.line, "a list or a mapping is used as a key", "write a name before the colon")
                continue
            if isinstance(key.scalar, Plain) and key.scalar == "<<":
                merges.append(value)
                continue
            name = "null" if key.scalar is None else str(key.scalar)
            if name in own:
                message = f"{name!r} is written twice; the first is on line {lines[name]}"
                self._find((*path, name), key.line, message, "keep one of the two")
                continue
            own[name], lines[name] = value, key.line
        for merge in merges:
            for name, (line, value) in self._merged(merge, path, depth + 1).items():
                if name not in own:
                    own[name], lines[name] = value, line
        for name, line in lines.items():
            self._document.lines[(*path, name)] = line
        return own

    def _merged(self, node: _Node, path: Path, depth: int) -> dict[str, tuple[int, _Node]]:
        self._count(node, depth)
        found: dict[str, tuple[int, _Node]] = {}
        if node.items is not None:
            for item in node.items:
                for name, pair in self._merged(item, path, depth + 1).items():
                    found.setdefault(name, pair)
            return found
        if node.pairs is None:
            self._find(path, node.line, "'<<' needs a mapping", "write <<: *name, where &name marks a mapping")
            return found
        self._nodes += len(node.pairs)  # the same mapping may be merged many times over
        for name, value in self._members(node, path, depth).items():
            found[name] = (self._document.lines[(*path, name)], value)
        return found

    def _find(self, path: Path, line: int, message: str, cure: str) -> None:
        self._document.add(Finding(path, message, cure, line))
