"""Google's generateContent, as targets speak it: Gemini's own service, and Vertex. Pure.

The base URL of Gemini's service ends with its version (`…/v1beta`), that of Vertex with the publisher
(`…/v1/projects/P/locations/L/publishers/google`). They are asked alike, but for two things: Vertex knows no ids of
function calls, and has other operations for embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

from appliance.dialects.answer import Ask
from appliance.dialects.chat import ChatRequest
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.gemini import config, vectors
from appliance.dialects.gemini.content import contents
from appliance.dialects.gemini.model import model_of, resource
from appliance.dialects.gemini.reading import GeminiReader
from appliance.dialects.translating import refuse
from appliance.dialects.vectors import Vectors
from appliance.dialects.wire import encode
from runtimes.engine import Event

FEATURES = frozenset(
    (
        "tools",
        "tool_images",
        "json_object",
        "json_schema",
        "logprobs",
        "top_k",
        "images",
        "audio_input",
        "files",
        "reasoning",
    )
)
"""What the dialect has a notion for; a single model may be able to do less."""

_REFUSED = {
    "logit_bias": "it has no token ids; leave it out.",
    "min_p": "use top_p or top_k.",
    "repetition_penalty": "use presence_penalty or frequency_penalty.",
    "verbosity": "ask for the length you want in a message.",
}


def _call_id() -> str:
    return "call_" + token_hex(12)


class Gemini:
    """`Outbound` for Google's models; `embed_ask` and `read_vectors` are for embeddings."""

    def __init__(
        self,
        name: str,
        *,
        ids: bool,
        embed: Callable[[EmbeddingRequest, str], Ask],
        fresh: Callable[[], str] = _call_id,
    ) -> None:
        """ids: whether calls and their results are sent with ids. fresh: makes one for a call that came without."""
        self.name = name
        self._ids = ids
        self._embed = embed
        self._fresh = fresh

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the model has no notion for, and without which it answers all the same."""
        return frozenset(_REFUSED)

    def ask(self, request: ChatRequest, model: str, *, stream: bool) -> Ask:
        refuse(request, _REFUSED)
        which = model_of(model)
        instruction, turns = contents(request, which, ids=self._ids)
        body: dict[str, Any] = {"contents": turns, **config.tools(request)}
        if instruction:
            body["systemInstruction"] = {"parts": instruction}
        if generation := config.generation(request, which):
            body["generationConfig"] = generation
        action = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return Ask(f"{resource(model)}:{action}", encode(body))

    def reader(self, target: str, request: ChatRequest) -> GeminiReader:
        return GeminiReader(target, request.choices, self._fresh, logprobs=bool(request.logprobs))

    def read_whole(self, body: bytes, target: str, request: ChatRequest) -> list[Event]:
        return self.reader(target, request).whole(body)

    def embed_ask(self, request: EmbeddingRequest, model: str) -> Ask:
        """Raises UnsupportedParameter for token ids, and for more texts than the target takes at once."""
        return self._embed(request, model)

    def read_vectors(self, body: bytes, target: str, request: EmbeddingRequest) -> Vectors:
        """The vectors of a whole answer, for `embeddings.render`. Raises UpstreamFailed."""
        return vectors.read(body, target, request)


GEMINI = Gemini("gemini", ids=True, embed=vectors.ask_gemini)
VERTEX = Gemini("vertex", ids=False, embed=vectors.ask_vertex)
