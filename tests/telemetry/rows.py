"""Finished exchanges to tell about."""

from __future__ import annotations

from typing import Any

from appliance.records.rows import Attempt, ExchangeRow


def row(**fields: Any) -> ExchangeRow:
    """A streamed chat that went well, with one attempt; `fields` say what was otherwise."""
    given: dict[str, Any] = {
        "id": "0123456789ab",
        "kind": "chat.completions",
        "started_at": 1_700_000_000.0,
        "key_id": "key_1",
        "key_name": "ci",
        "route": "chat",
        "target": "small",
        "stream": True,
        "finish_reasons": ["stop"],
        "attempts": [Attempt("small", 0.1, 1.9, "completed")],
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 21,
        "reasoning_tokens": 5,
        "cost_nanousd": 1_500_000,
        "queue_s": 0.2,
        "ttft_s": 0.5,
        "duration_s": 2.0,
    }
    return ExchangeRow(**{**given, **fields})
