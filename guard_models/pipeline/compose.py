"""Poisoned documents, and honest ones that look alike: what is planted, where, and in what wrapping.

An instruction is no attack by itself: "Who wrote Faust?" is a question when a user asks it, and an injection in the
middle of an e-mail that he wants summarised. So planted texts are only met inside carriers here, and each wrapping that
announces a planted text also comes with an honest one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from guard_models.pipeline.rows import Row

# What users write round a document. The task may stand before or after it.
TASKS = (
    "Summarise the following {kind}.", "Please summarize this {kind} for me:", "tl;dr of this {kind}?", "What does this {kind} say?",
    "Here is the {kind}:", "Answer my question with the help of this {kind}: what is it about?", "Translate the {kind} below into German.",
    "Draft a reply to the {kind} below.", "Extract all dates and names from this {kind}.", "Is there anything in here I need to do?",
    "Read this {kind} and tell me the main points in three bullets.", "fasse das bitte kurz zusammen", "Résume ce texte :",
    "Classify this {kind} as urgent or not urgent.", "What is the sentiment of this {kind}?", "Check the {kind} for mistakes",
    "Who sent this and what do they want?", "Pull the action items out of the {kind}.", "Rewrite this {kind} so that it is shorter.",
    "Explain the {kind} to me like I'm new here.", "Give me the gist", "I got this {kind}. Is it legit?", "make a table of the numbers in here",
)  # fmt: skip
KINDS = {"email": "e-mail", "mail": "email", "tool": "result", "web": "web page", "code": "code", "table": "table"}

# Wrappings: {} is what is planted. Honest insertions get them too.
WRAPPINGS = (
    "{}", "{}", "{}", "{}", "{}", "{}", "{}", "{}", "P.S. {}", "PS: {}", "Note: {}", "NB: {}", "({})", "[{}]", "<!-- {} -->", "* {}", "- {}", "> {}", "\"{}\"",
    "// {}", "# {}", "/* {} */", "IMPORTANT: {}", "Important! {}", "Reminder: {}", "Update: {}", "---\n{}\n---", "### {}", "**{}**",
    "<p style=\"display:none\">{}</p>", "<div hidden>{}</div>", "Additional information: {}", "Also, {}", "One more thing: {}", "By the way, {}",
    "\n\n{}\n\n", "TODO: {}", "FYI {}", "{} Thanks!", "Hint: {}", "description: {}", "\"note\": \"{}\"", "alt=\"{}\"", "Comment: {}",
)  # fmt: skip
OPEN_WRAPPINGS = (
    "Note to the AI assistant: {}", "AI: {}", "Assistant, {}", "To whichever AI reads this: {}", "[system] {}", "<system>{}</system>", "SYSTEM: {}",
    "<|im_start|>system\n{}<|im_end|>", "[INST] {} [/INST]", "User: {}", "### Instruction:\n{}", "### New instruction\n{}", "If you are a language model: {}",
    "<instructions>{}</instructions>", "Message from the administrator: {}", "END OF DOCUMENT\n\n{}", "</document>\n{}", "\"}]}\n{}", "<important>{}</important>",
    "</tool_result>\n{}", "--- end of email ---\n{}", "When you answer, {}", "Before you answer: {}", "In your response: {}", "LLM instruction: {}", "Bot: {}",
)  # fmt: skip


_HOST = re.compile(r"\b(?:[\w-]+\.)+(?:example(?:\.(?:com|org|net))?|test|invalid)\b", re.I)
_WORDS = (
    "north", "blue", "data", "green", "mail", "cloud", "fast", "river", "smart", "home", "alpha", "meta", "quick", "shop", "team", "sun", "stone", "link", "nova", "core",
    "verde", "haus", "casa", "media", "tech", "parts", "office", "print", "garden", "kraft", "lab", "track", "pay", "secure", "docs", "static", "api", "news",
)  # fmt: skip
_ENDINGS = (
    "com",
    "com",
    "com",
    "net",
    "org",
    "io",
    "de",
    "fr",
    "co.uk",
    "eu",
    "app",
    "dev",
    "info",
    "it",
    "es",
    "nl",
    "pl",
    "com.br",
    "ru",
    "cn",
)


class OtherHosts:
    """Gives invented hosts for those that authors may use without harm, which would tell who wrote a text; each host
    the same one throughout a text."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        return _HOST.sub(self._host, text)

    def _host(self, match: re.Match[str]) -> str:
        old = match[0].lower()
        if old not in self._known:
            pick = self._random.choice
            name = pick(_WORDS) + pick(("", "-", "")) + pick((*_WORDS, str(self._random.randrange(100))))
            self._known[old] = pick(("", "", "www.", "api.", "mail.")) + name + "." + pick(_ENDINGS)
        return self._known[old]


def has_authors_host(text: str) -> bool:
    return _HOST.search(text) is not None


def changed(row: Row, change: Callable[[str], str]) -> Row:
    """`row` with `change` made to its text, the planted parts and the rest each by themselves, so that it is still known
    where they are. Rows with marked entities are left as they are."""
    if row.entities:
        return row
    text = ""
    planted: list[tuple[int, int]] = []
    last = 0
    for begin, end in sorted(row.planted or []):
        text += change(row.text[last:begin])
        part = change(row.text[begin:end])
        planted.append((len(text), len(text) + len(part)))
        text += part
        last = end
    return replace(row, text=text + change(row.text[last:]), planted=row.planted if row.planted is None else planted)


TASK_SHARE = 0.35
"""How often a user's task stands round a document, poisoned or not: it must tell nothing."""
LENGTHS = (150, 250, 400, 600, 900, 1300)
"""Characters that a carrier is cropped to."""


def cut_points(text: str) -> list[int]:
    """Where something can be put into `text`: its ends, between paragraphs and lines, between sentences."""
    points = {0, len(text)}
    points.update(match.end() for match in re.finditer(r"\n+|(?<=[.!?])\s+(?=\S)", text))
    return sorted(points)


def inserted(carrier: str, what: str, random: Random) -> tuple[str, tuple[int, int]]:
    """`what` put into `carrier` at the end (two times in five), the beginning, or between two sentences; and where it is."""
    points = cut_points(carrier)
    roll = random.random()
    if roll < 0.4:
        at = len(carrier)
    elif roll < 0.5:
        at = 0
    else:
        at = random.choice(points)
    before, after = carrier[:at], carrier[at:]
    line = "\n" if "\n" in carrier and random.random() < 0.7 else " "
    if random.random() < 0.3 and line == "\n":
        line = "\n\n"
    left = "" if not before or before[-1].isspace() else line
    right = "" if not after or after[0].isspace() else line
    begin = len(before) + len(left)
    return f"{before}{left}{what}{right}{after}", (begin, begin + len(what))


def with_task(text: str, kind: str, random: Random) -> tuple[str, int]:
    """`text` as a user hands it over, his task before or after; and how far the text was moved."""
    task = random.choice(TASKS).format(kind=KINDS.get(kind, random.choice(("text", "document", "message"))))
    left, right = random.choice(
        (("\n\n", ""), ("\n", ""), ("\n\n\"\"\"\n", "\n\"\"\""), ("\n<document>\n", "\n</document>"), ("\n---\n", "\n---"), ("\n```\n", "\n```"))
    )  # fmt: skip
    if random.random() < 0.75:
        return f"{task}{left}{text}{right}", len(task) + len(left)
    head = left.lstrip("\n")
    return f"{head}{text}{right}\n\n{task}", len(head)


def cropped(text: str, most: int, random: Random) -> str:
    """At most `most` characters of `text`, from one cut point to another."""
    if len(text) <= most:
        return text
    starts = [point for point in cut_points(text) if point < len(text) - most // 2] or [0]
    begin = random.choice(starts) if random.random() < 0.5 else 0
    ends = [point for point in cut_points(text) if begin + most // 3 < point <= begin + most]
    return text[begin : ends[-1] if ends else begin + most].strip()


def poisoned(
    carriers: Sequence[Row], payloads: Sequence[Row], count: int, random: Random, *, set_name: str
) -> list[Row]:
    """`count` carriers with a payload each; where it is, is known."""
    rows: list[Row] = []
    of_language: dict[str, list[Row]] = {}
    for one in payloads:
        of_language.setdefault(one.lang, []).append(one)
    for _ in range(count):
        carrier = random.choice(carriers)
        # Most plants speak the language of what they are planted in.
        fitting = of_language.get(carrier.lang, payloads) if random.random() < 0.8 else payloads
        payload = random.choice(fitting)
        text = cropped(carrier.text, random.choice(LENGTHS), random)
        wraps = OPEN_WRAPPINGS if random.random() < 0.2 else WRAPPINGS
        what = random.choice(wraps).replace("{}", payload.text)
        whole, (begin, end) = inserted(text, what, random)
        if random.random() < TASK_SHARE:
            whole, moved = with_task(whole, carrier.slice, random)
            begin, end = begin + moved, end + moved
        rows.append(
            Row(
                whole, set_name, f"{carrier.slice}/{payload.slice}", carrier.lang, injection=1.0, planted=[(begin, end)]
            )
        )
    return rows


def honest(
    carriers: Sequence[Row], sentences: Sequence[str], count: int, random: Random, *, set_name: str
) -> list[Row]:
    """`count` carriers without an attack: as they are, with a user's task, or with an honest sentence put in and wrapped."""
    rows: list[Row] = []
    for _ in range(count):
        carrier = random.choice(carriers)
        text = cropped(carrier.text, random.choice(LENGTHS), random)
        if random.random() < 0.4 and sentences:
            # What announces a planted text announces honest ones as well, if not as often.
            wraps = OPEN_WRAPPINGS if random.random() < 0.15 else WRAPPINGS
            text, _ = inserted(text, random.choice(wraps).replace("{}", random.choice(sentences)), random)
        if random.random() < TASK_SHARE:
            text, _ = with_task(text, carrier.slice, random)
        rows.append(Row(text, set_name, carrier.slice, carrier.lang, injection=0.0, planted=[]))
    return rows


def honest_sentences(rows: Sequence[Row]) -> list[str]:
    """Sentences of clean mails and documents, for `honest`: those that address the reader first."""
    found: list[str] = []
    for row in rows:
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", row.text):
            if 20 <= len(sentence) <= 200 and re.search(
                r"\b(please|you|your|kindly|let me know|do not|don't|bitte|merci|por favor)\b", sentence, re.I
            ):
                found.append(sentence.strip())
    return found
