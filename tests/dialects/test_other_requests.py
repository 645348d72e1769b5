from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import completions, embeddings
from appliance.errors import BadRequest, OutpostError, UnsupportedParameter


def complete(**fields: Any) -> completions.CompletionRequest:
    return completions.parse(json.dumps({"model": "m", "prompt": "Once", **fields}).encode())


def embed(**fields: Any) -> embeddings.EmbeddingRequest:
    return embeddings.parse(json.dumps({"model": "m", "input": "text", **fields}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_form_of_prompt(prompt: Any, prompts: list[Any]) -> None:
    request = complete(prompt=prompt, n=2)
    assert request.prompts() == prompts
    assert request.choices == 2 * len(prompts)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": None}, "prompt", ""),
        ({"prompt": ["a", 1]}, "prompt", "one kind"),
        ({"prompt": [[]]}, "prompt[0]", "at least 1"),
        ({"prompt": [-1]}, "prompt[0]", "at least 0"),
        ({"prompt": [1.5]}, "prompt[0]", ""),
        ({"prompt": [True]}, "prompt[0]", ""),
        ({"prompt": ["a"] * 129}, "prompt", "at most 128"),
        ({"prompt": ["a"] * 50, "n": 3}, "prompt", "at most 128"),
        ({"suffix": "end"}, "suffix", "fills in the middle"),
        ({"best_of": 3}, "best_of", "larger than n"),
        ({"best_of": 1, "n": 2}, "best_of", "smaller than n"),
        ({"logprobs": 6}, "logprobs", "at most 5"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"echo": True, "logprobs": 1}, "echo", "no logprobs"),
        ({"max_tokens": -1}, "max_tokens", "at least 0"),
        ({"stream_options": {}}, "stream_options", "stream: true"),
        ({"messages": []}, "messages", "chat/completions"),
        ({"tools": []}, "tools", "chat/completions"),
        ({"nonsense": 1}, "nonsense", "not a known"),
        ({"store": True}, "store", "not stored"),
    ],
)
def test_completions_refuse_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        complete(**fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_completions_accept() -> None:
    assert complete(best_of=2, n=2, echo=True, suffix=None, user="u").choices == 2
    assert complete().token_limit == 16
    assert complete(max_tokens=7).token_limit == 7
    needs = {feature for feature, _, _ in completions.needs(complete(prompt=[1], logprobs=0, top_k=3))}
    assert needs == {"token_prompts", "logprobs", "top_k"}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": ""}, "input", "not be empty"),
        ({"input": ["a", ""]}, "input[1]", "not be empty"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [[]]}, "input[0]", "at least 1"),
        ({"input": ["a", [1]]}, "input", "one kind"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": None}, "input", ""),
        ({"encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"stream": True}, "stream", "not streamed"),
    ],
)
def test_embeddings_refuse_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embed(**fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_embeddings_accept_every_form() -> None:
    assert embed(input=["a"] * 2048).choices == 2048
    assert embed(input=[1, 2]).inputs() == [[1, 2]]
    assert embed(input=[[1], [2]]).inputs() == [[1], [2]]
    assert list(embeddings.needs(embed(input=[1]))) == [("token_prompts", "input", False)]


def test_vectors_are_the_same_in_both_encodings() -> None:
    vectors = [struct.pack("<3f", 0.25, -1.5, 3.0), struct.pack("<3f", 1.0, 2.0, 3.0)]
    floats = json.loads(embeddings.render("m", vectors, 7, as_base64=False))
    packed = json.loads(embeddings.render("m", vectors, 7, as_base64=True))
    assert floats["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert [entry["index"] for entry in floats["data"]] == [0, 1]
    for plain, coded in zip(floats["data"], packed["data"], strict=True):
        assert list(struct.unpack("<3f", base64.b64decode(coded["embedding"]))) == plain["embedding"]
    assert floats["data"][0]["embedding"] == [0.25, -1.5, 3.0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(json_values, st.dictionaries(st.sampled_from(completions.CompletionRequest.__struct_fields__), json_values))
def test_any_json_is_a_request_or_a_clear_refusal(value: Any, extra: dict[str, Any]) -> None:
    for parse, field in ((completions.parse, "prompt"), (embeddings.parse, "input")):
        try:
            request: Any = parse(json.dumps({"model": "m", field: value, **extra}).encode())
        except OutpostError as error:
            assert error.status == 400
        else:
            assert request.choices >= 1


def test_refusals_of_known_fields_say_so() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        complete(max_completion_tokens=5)
    assert "takes max_tokens" in caught.value.message
