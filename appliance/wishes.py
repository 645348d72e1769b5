"""What a caller may ask for in headers, beside what stands in the body."""

from __future__ import annotations

import re

from appliance.errors import BadRequest
from appliance.redact import looks_secret

TAGS_HEADER = "x-outpost-tags"
PRIORITY_HEADER = "x-outpost-priority"
SESSION_HEADER = "x-outpost-session"
EXPLAIN_HEADER = "x-outpost-explain"
MAX_TAGS = 16

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,63}")


def parse_tags(text: str | None) -> list[str]:
    """Cost centres: `research, project:x`. Each once, in the order given. Raises BadRequest naming the header."""
    if not text:
        return []
    tags = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(tags) > MAX_TAGS:
        raise BadRequest(f"{TAGS_HEADER}: at most {MAX_TAGS} tags", param=TAGS_HEADER)
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise BadRequest(
                f"{TAGS_HEADER}: a tag has 1 to 64 letters, digits and . _ : / @ + - , the first a letter or digit; "
                "separate tags by commas",
                param=TAGS_HEADER,
            )
        if looks_secret(tag):
            raise BadRequest(
                f"{TAGS_HEADER}: a tag looks like a key; tags are kept and shown, so name a cost centre instead",
                param=TAGS_HEADER,
            )
    return tags


_SESSION = re.compile(r"[!-~]{1,128}")


def parse_session(text: str | None) -> str:
    """What requests that belong together have in common; "" where nothing is said. Raises BadRequest."""
    if not text:
        return ""
    if not _SESSION.fullmatch(text):
        raise BadRequest(f"{SESSION_HEADER}: 1 to 128 printable ASCII characters without spaces", param=SESSION_HEADER)
    return text


def parse_explain(text: str | None) -> bool:
    """Whether the plan is to be told instead of an answer. Raises BadRequest."""
    if text not in (None, "", "0", "1"):
        raise BadRequest(
            f"{EXPLAIN_HEADER}: send 1 to be told the plan instead of an answer, or leave it out", param=EXPLAIN_HEADER
        )
    return text == "1"
