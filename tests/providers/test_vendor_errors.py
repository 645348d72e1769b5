"""Refusals as the vendors write them: which error they become, and how long they say to wait."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.providers.http_errors import from_status
from appliance.providers.waits import LONGEST, reset_after, wait_of


def told(status: int, body: Any, **headers: str) -> errors.OutpostError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_status("up", status, named, json.dumps(body).encode(), now=1000.0)


def openai(message: str, code: str | None = None, type: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def anthropic(message: str, type: str = "invalid_request_error") -> dict[str, Any]:
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}


def google(code: int, message: str, status: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


AZURE_FILTER = {
    "error": {
        "message": "The response was filtered due to the prompt triggering a content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    }
}

FILTERED: list[tuple[int, Any]] = [
    (400, AZURE_FILTER),
    (400, {"error": {"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    (400, openai("Your request was rejected as a result of our safety system.", "content_policy_violation")),
    (400, openai("Invalid prompt: it was flagged as potentially violating our usage policy.", "invalid_prompt")),
    (400, anthropic("Output blocked by content filtering policy")),
    (400, {"message": "The generated text has been blocked by our content filters."}),
    (400, openai("Content Exists Risk")),
    (403, {"error": {"code": 403, "message": "x requires moderation", "metadata": {"reasons": ["violence"]}}}),
    (403, {"code": "The caller does not have permission", "error": "Content violates usage guidelines."}),
]


@pytest.mark.parametrize(("status", "body"), FILTERED)
def test_a_refusal_for_what_the_text_says(status: int, body: Any) -> None:
    found = told(status, body)
    assert isinstance(found, errors.ContentFiltered)
    assert (found.status, found.code, found.retryable, found.elsewhere) == (400, "content_filter", False, False)


def test_azure_names_the_field() -> None:
    assert told(400, AZURE_FILTER).param == "prompt"


TOO_LONG: list[tuple[int, Any]] = [
    (400, openai("This model's maximum context length is 8192 tokens.", "context_length_exceeded")),
    (400, openai("Your input exceeds the context window of this model.")),
    (400, anthropic("prompt is too long: 210000 tokens > 200000 maximum")),
    (400, anthropic("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000")),
    (400, google(400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "X")),
    (400, {"message": "Input is too long for requested model."}),
    (400, {"message": "Too many input tokens. Max input tokens: 1000, request input token count: 2000"}),
    (400, {"message": "too many tokens: total number of tokens in the prompt exceeds the limit", "id": "1"}),
    (400, {"object": "error", "message": "Prompt too large for model with 32768 maximum context length"}),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000", "error_type": "validation"}),
    (422, {"error": "`inputs` must have less than 1024 tokens. Given: 2000".replace("`inputs`", "inputs")}),
    (400, openai("Please reduce the length of the messages or completion.")),
    (413, openai("Please reduce the length of the messages or completion.")),
    (400, {"code": "x", "error": "This model's maximum prompt length is 131072 but the request contains 200000."}),
    (400, {"error": {"object": "error", "message": "The prompt is too long: 12345, model maximum 8191"}}),
    (400, {"object": "error", "message": "maximum context length is 8", "type": "BadRequestError", "code": 400}),
]


@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_a_prompt_that_is_too_long(status: int, body: Any) -> None:
    found = told(status, body)
    assert isinstance(found, errors.ContextLengthExceeded)
    assert found.elsewhere
    assert found.param


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens.",
        "temperature: must be at most 1",
        "tools.0.name: too long",
    ],
)
def test_other_mistakes_are_none_of_these(message: str) -> None:
    assert type(told(400, openai(message))) is errors.BadRequest


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, openai("You exceeded your current quota, please check your plan.", "insufficient_quota")),
        (429, {"error": {"message": "m", "type": "insufficient_quota"}}),
        (402, {"error": {"message": "Insufficient Balance"}}),
        (400, anthropic("Your credit balance is too low to access the Anthropic API.")),
        (402, b"no json"),
    ],
)
def test_an_account_that_is_used_up_is_not_worth_another_try_there(status: int, body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = from_status("up", status, {"retry-after": "1"}, raw, now=0.0)
    assert isinstance(found, errors.TargetUsedUp)
    assert (found.code, found.retry_after_s, found.again, found.retryable) == ("upstream_quota", None, False, True)
    assert "balance" not in found.message.lower()


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "code"),
    [
        (409, {}, {}, errors.UpstreamFailed, "upstream_error"),
        (424, {}, {}, errors.UpstreamFailed, "upstream_error"),
        (425, {}, {}, errors.UpstreamFailed, "upstream_error"),
        (498, {}, {}, errors.UpstreamUnavailable, "upstream_unavailable"),
        (529, anthropic("Overloaded", "overloaded_error"), {}, errors.UpstreamUnavailable, "upstream_unavailable"),
        (400, openai("m", "tool_use_failed"), {}, errors.UpstreamFailed, "upstream_error"),
        (
            400,
            google(400, "API key not valid.", "INVALID_ARGUMENT", {"@type": "ErrorInfo", "reason": "API_KEY_INVALID"}),
            {},
            errors.UpstreamError,
            "upstream_credentials",
        ),
        (400, {"message": "m"}, {"x_amzn_ErrorType": "ThrottlingException:http://x"}, errors.TargetLimited, None),
        (400, {"message": "m"}, {"x_amzn_ErrorType": "ServiceQuotaExceededException"}, errors.TargetLimited, None),
        (429, {"message": "m"}, {"x_amzn_ErrorType": "ModelNotReadyException"}, errors.UpstreamUnavailable, None),
        (400, {"__type": "com.amazon#ThrottlingException", "message": "m"}, {}, errors.TargetLimited, None),
        (408, {"message": "m"}, {"x_amzn_ErrorType": "ModelTimeoutException"}, errors.UpstreamTimeout, None),
        (413, openai("Request too large on tokens per minute", "rate_limit_exceeded"), {}, errors.TargetLimited, None),
        (404, {"error": {"code": "DeploymentNotFound"}}, {}, errors.UpstreamError, "upstream_not_found"),
        (503, [google(503, "overloaded", "UNAVAILABLE")], {}, errors.UpstreamUnavailable, None),
    ],
)
def test_the_vendors_other_words(
    status: int, body: Any, headers: dict[str, str], kind: type[errors.OutpostError], code: str | None
) -> None:
    found = told(status, body, **headers)
    assert type(found) is kind
    assert code in (None, found.code)


def test_what_is_wrong_is_told_in_the_vendors_words() -> None:
    fastapi = {"detail": [{"loc": ["body", "temperature"], "msg": "must be smaller", "type": "x"}]}
    assert told(422, fastapi).message == "temperature: must be smaller"
    mistral = {"object": "error", "message": {"detail": fastapi["detail"]}, "type": "invalid_request_error"}
    assert told(400, mistral).message == "temperature: must be smaller"
    assert told(400, {"Message": "of AWS"}).message == "of AWS"
    assert told(400, [google(400, "of Google", "INVALID_ARGUMENT")]).message == "of Google"
    assert told(400, {"code": "c", "error": "of xAI"}).message == "of xAI"


# --- how long to wait -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "9", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "50s"}, 9.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "17ms"}, 0.017),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "17s"}, None),
        ({"x-ratelimit-reset-tokens": "17s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1m2.5s",
            },
            62.5,
        ),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1030000"}, LONGEST),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, None),
    ],
)
def test_the_wait_that_headers_ask_for(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_of(headers, 1000.0) == seconds


def test_a_moment_is_read_in_each_form() -> None:
    now = 1_800_000_000.0
    assert reset_after("1800000030", now) == 30.0
    assert reset_after("1800000030000", now) == 30.0
    assert reset_after("2027-01-15T08:00:30Z", now) == 30.0
    assert reset_after("2027-01-15T08:00:30", now) is None
    assert reset_after("1h2m3s", now) == 3600.0


def test_googles_and_hugging_faces_bodies_tell_it_too() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    assert told(429, google(429, "m", "RESOURCE_EXHAUSTED", info)).retry_after_s == 34.5
    assert told(429, google(429, "m", "RESOURCE_EXHAUSTED", info), Retry_After="7").retry_after_s == 7.0
    assert told(503, {"error": "is currently loading", "estimated_time": 20.0}).retry_after_s == 20.0


@given(st.text(max_size=20) | st.from_regex(r"[0-9hms.]{0,12}", fullmatch=True))
def test_any_reset_is_harmless(value: str) -> None:
    found = reset_after(value, 0.0)
    assert found is None or 0.0 <= found <= LONGEST


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "code", "type", "details", "reason", "innererror", "param"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.integers(300, 599), jsons)
def test_any_body_becomes_an_error(status: int, body: Any) -> None:
    found = told(status, body)
    assert 400 <= found.status < 600
    assert found.message.isprintable()
