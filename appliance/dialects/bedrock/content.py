"""Parts of messages as Converse's content blocks. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from appliance.dialects import chat
from appliance.dialects.translating import data_url
from appliance.errors import BadRequest, UnsupportedParameter

Block = dict[str, Any]

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
_EXTENSIONS = frozenset(_DOCUMENTS.values())
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9()\[\]-]+")
_MOST_NAME = 180
_TOOL_USE_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_NOTHING = "(nothing)"
"""Stands for what a tool said when it said nothing: a blank text is refused."""


def tool_use_id(id: str) -> str:
    """The id of a tool call as Converse takes it: another maker's may be longer, or have other characters."""
    return id if _TOOL_USE_ID.fullmatch(id) else "call_" + hashlib.sha256(id.encode()).hexdigest()[:32]


def cache_point(control: chat.CacheControl | None) -> list[Block]:
    """What follows a block that is marked as the end of what is worth keeping."""
    if control is None:
        return []
    hour = {"ttl": "1h"} if control.get("ttl") == "1h" else {}
    return [{"cachePoint": {"type": "default", **hour}}]


def text(value: str) -> list[Block]:
    """A text block; none for a blank text, which is refused."""
    return [{"text": value}] if value.strip() else []


class Documents:
    """Names for the files of one request. They must differ, and may have few characters."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def name(self, wanted: str) -> str:
        base = _NOT_IN_NAMES.sub(" ", wanted).strip()[:_MOST_NAME].strip() or "document"
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base} {count}"
        self._taken.add(name)
        return name


def parts(content: str | list[Any] | None, path: str, documents: Documents, *, caches: bool) -> list[Block]:
    """The blocks of a message's content; `path` is its field, for refusals."""
    if content is None or isinstance(content, str):
        return text(content or "")
    blocks: list[Block] = []
    for k, part in enumerate(content):
        at = f"{path}[{k}]"
        if isinstance(part, chat.TextPart):
            made = text(part.text)
        elif isinstance(part, chat.ImagePart):
            made = [image(part, at)]
        elif isinstance(part, chat.AudioPart):
            audio = part.input_audio
            made = [{"audio": {"format": audio.format, "source": {"bytes": audio.data}}}]
        elif isinstance(part, chat.FilePart):
            made = [document(part, at, documents)]
        else:
            made = text(part.refusal)
        blocks += made
        if caches and made:
            blocks += cache_point(getattr(part, "cache_control", None))
    return blocks


def image(part: chat.ImagePart, path: str) -> Block:
    """Raises UnsupportedParameter for an address, BadRequest for what is no image."""
    field = f"{path}.image_url.url"
    kind, data = data_url(part.image_url.url, field)
    if (form := _IMAGES.get(kind)) is None or not data:
        raise BadRequest(f"{field}: the image must be PNG, JPEG, GIF or WebP.", param=field)
    return {"image": {"format": form, "source": {"bytes": data}}}


def document(part: chat.FilePart, path: str, documents: Documents) -> Block:
    """Raises UnsupportedParameter for a file that lies elsewhere, BadRequest for what is no document."""
    file = part.file
    data = file.get("file_data")
    if not isinstance(data, str):
        field = f"{path}.file.file_id" if file.get("file_id") else f"{path}.file"
        raise UnsupportedParameter(
            f"{field}: this target keeps no files; send the content as a data: URL in file_data.", param=field
        )
    field = f"{path}.file.file_data"
    filename = file.get("filename")
    stem, _, extension = filename.rpartition(".") if isinstance(filename, str) else ("", "", "")
    kind, content = data_url(data, field) if data[:5].lower() == "data:" else ("", data)
    # What a file is called says more than a general type does.
    form = _DOCUMENTS.get(kind)
    if form is None or (form == "txt" and extension.lower() in _EXTENSIONS):
        form = extension.lower() if extension.lower() in _EXTENSIONS else form
    if form is None:
        raise BadRequest(f"{field}: the file must be one of {', '.join(sorted(_EXTENSIONS))}.", param=field)
    name = documents.name(stem or (filename if isinstance(filename, str) else ""))
    return {"document": {"format": form, "name": name, "source": {"bytes": content}}}


def tool_result(message: chat.ToolMessage, path: str, documents: Documents, *, caches: bool) -> list[Block]:
    """A tool's answer, and the cache point behind it if one of its parts has one: inside it may be none."""
    content = message.content
    inner = parts(content, f"{path}.content", documents, caches=False) or [{"text": _NOTHING}]
    result: Block = {"toolUseId": tool_use_id(message.tool_call_id), "content": inner}
    if message.is_error:
        result["status"] = "error"
    blocks: list[Block] = [{"toolResult": result}]
    if caches and isinstance(content, list):
        marks = [mark for part in content if (mark := getattr(part, "cache_control", None)) is not None]
        blocks += cache_point(marks[-1] if marks else None)
    return blocks
