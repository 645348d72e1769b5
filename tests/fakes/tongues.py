"""The dialects that the fake upstream speaks; which one, the path says."""

from __future__ import annotations

from tests.fakes.tongue import Tongue
from tests.fakes.tongue_anthropic import ANTHROPIC, COUNTING
from tests.fakes.tongue_bedrock import BEDROCK
from tests.fakes.tongue_cohere import COHERE
from tests.fakes.tongue_gemini import GEMINI
from tests.fakes.tongue_openai import OPENAI
from tests.fakes.tongue_responses import RESPONSES

TONGUES = (OPENAI, RESPONSES, ANTHROPIC, COUNTING, GEMINI, BEDROCK, COHERE)


def tongue_of(path: str) -> Tongue | None:
    """None: a path of no chat (embeddings, completions, the list of models)."""
    plain = path.partition("?")[0]
    return next((tongue for tongue in TONGUES if tongue.owns(plain)), None)
