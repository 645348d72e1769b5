"""Each type of value: what is read, and the words in which anything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from appliance.settings.document import Plain
from appliance.settings.loader import from_mapping
from appliance.settings.problems import SettingsError
from appliance.settings.values import (
    Address,
    parse_address,
    read_base_url,
    read_integer,
    read_native,
    read_switch,
    read_text,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:8080", "::1", 8080),
        ("[::]:65535", "::", 65535),
        ("[2001:DB8:0:0::1]:1", "2001:db8::1", 1),
        ("localhost:80", "localhost", 80),
        ("Box.Example.org:443", "box.example.org", 443),
        ("my-service_1:443", "my-service_1", 443),
    ],
)
def test_addresses_are_read_and_printed(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ("8080", "has no host", "0.0.0.0:8080"),
        (8080, "has no host", "127.0.0.1:8080"),
        (":8080", "has no host", "0.0.0.0:8080"),
        ("*:8080", "has no host", "0.0.0.0:8080"),
        ("localhost", "has no port", "host:port"),
        ("localhost:", "has no port", "host:port"),
        ("::1:8080", "cannot be told apart", "[::1]:8080"),
        ("[::g]:80", "not an IPv6 address", "[::1]:8080"),
        ("1.2.3.400:80", "not an IPv4 address", "127.0.0.1:8080"),
        ("1.2.3:80", "not an IPv4 address", "127.0.0.1:8080"),
        ("a b:80", "not a host name", "host:port"),
        ("user@host:80", "not a host name", "host:port"),
        ("localhost:65536", "is not a port", "65535"),
        ("localhost:-1", "is not a port", "65535"),
        ("localhost:http", "is not a port", "65535"),
        ("localhost:٨٠", "is not a port", "65535"),
        ("unix:/run/x.sock", "Unix socket", "host:port"),
        ("/run/x.sock", "Unix socket", "host:port"),
        ("http://localhost:80", "is a URL", "host:port"),
        (None, "has no value", "host:port"),
        (True, "expected host:port", "127.0.0.1:8080"),
        (["a"], "found a list", "127.0.0.1:8080"),
    ],
)
def test_other_addresses_are_refused_with_a_cure(text: Any, message: str, cure: str) -> None:
    refused(lambda: parse_address(text), message, cure)


@pytest.mark.parametrize(
    ("value", "expected"), [(8, 8), (Plain("8"), 8), (Plain("1_000"), 1000), (Plain("-3"), -3), (Plain("0"), 0)]
)
def test_integers_are_read(value: Any, expected: int) -> None:
    assert read_integer(value) == expected


@pytest.mark.parametrize(
    ("value", "message", "cure"),
    [
        ("8", "found the text '8'", "remove the quotes"),
        (Plain("08"), "found '08'", "whole number"),
        (Plain("1.5"), "found '1.5'", "e.g. 8"),
        (Plain("10:30"), "found '10:30'", "e.g. 8"),
        (Plain("9" * 50), "whole number", "e.g. 8"),
        (Plain("yes"), "found 'yes'", "e.g. 8"),
        (True, "found True", "e.g. 8"),
        (None, "has no value", "remove the line"),
        ({}, "found a mapping", "e.g. 8"),
    ],
)
def test_other_integers_are_refused_with_a_cure(value: Any, message: str, cure: str) -> None:
    refused(lambda: read_integer(value), message, cure)


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "ON"])
def test_words_for_true(word: str) -> None:
    assert read_switch(Plain(word)) is True


@pytest.mark.parametrize("word", ["false", "FALSE", "no", "off"])
def test_words_for_false(word: str) -> None:
    assert read_switch(Plain(word)) is False


@pytest.mark.parametrize(
    ("value", "message"), [("yes", "the text 'yes'"), (Plain("y"), "found 'y'"), (1, "found 1"), (None, "no value")]
)
def test_other_switches_are_refused(value: Any, message: str) -> None:
    refused(lambda: read_switch(value), message, "")


def test_text_stays_as_it_was_written() -> None:
    assert [read_text(Plain(word)) for word in ("no", "1.10", "10:30", "0777")] == ["no", "1.10", "10:30", "0777"]
    refused(lambda: read_text("a\nb"), "line break", "one line")
    refused(lambda: read_text("a" * 5000), "longer than", "shorter")
    refused(lambda: read_text(5), "expected text, found 5", "e.g.")


def test_free_values_follow_json() -> None:
    plain = {
        "a": Plain("true"), "b": Plain("12"), "c": Plain("0.2"), "d": "12", "e": [Plain("1_000"), None],
        "f": Plain("no"), "g": Plain("10:30"), "h": Plain("1e3"), "i": Plain(".inf"), "j": Plain("-.5"),
    }  # fmt: skip
    assert read_native(plain) == {
        "a": True, "b": 12, "c": 0.2, "d": "12", "e": [1000, None],
        "f": "no", "g": "10:30", "h": 1000.0, "i": ".inf", "j": -0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://[::1]/v1", "https://[::1]/v1"),
        ("https://api.example.org", "https://api.example.org"),
    ],
)
def test_base_addresses_are_read(text: str, expected: str) -> None:
    assert read_base_url(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://x/v1", "not an http(s) address"),
        ("x/v1", "not an http(s) address"),
        ("http://", "not a valid address"),
        ("http://x:99999/", "not a valid address"),
        ("http://x:0/", "not a valid address"),
        ("http://[::1/", "not a valid address"),
        ("http://a b/", "not a valid address"),
        ("http://x/v1?key=1", "query"),
        ("http://x/v1#a", "query"),
        ("http://user:hunter2@x/v1", "credentials"),
        (None, "has no value"),
    ],
)
def test_other_base_addresses_are_refused(text: Any, message: str) -> None:
    assert "hunter2" not in refused(lambda: read_base_url(text), message, "")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite+aiosqlite:///:memory:", "mysql://hunter2@h", 5])
def test_databases_that_are_none_of_ours_are_refused_without_their_password(url: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"database": {"url": url}})
    (problem,) = caught.value.problems
    assert problem.key == "database.url"
    assert "sqlite" in problem.cure
    assert "hunter2" not in str(problem)


def test_database_addresses() -> None:
    assert from_mapping({"data_dir": "/x"}).database_url == "sqlite+aiosqlite:////x/outpost.db"
    assert from_mapping({"database": {"url": "sqlite+aiosqlite:///y.db"}}).database_url == "sqlite+aiosqlite:///y.db"


def test_paths() -> None:
    assert from_mapping({"data_dir": "~/d"}, {"HOME": "/home/op"}).data_dir == Path("/home/op/d")
    for value, message in (("~/d", "HOME is not set"), ("~bob/d", "another user"), ("", "found ''"), (3, "found 3")):
        with pytest.raises(SettingsError, match=message):
            from_mapping({"data_dir": value})


@bounds(deadline=None, max_examples=100)
@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=2)))
def test_no_value_makes_a_reader_fail_in_another_way(value: Any) -> None:
    for read in (parse_address, read_integer, read_switch, read_text, read_base_url):
        for each in (value, Plain(value) if isinstance(value, str) else value):
            context: dict[str, Any] | None = {"cure": "none is needed"}
            try:
                read(each)
            except PydanticCustomError as error:
                context = error.context
            assert context
            assert context["cure"]


def refused(read: Any, message: str, cure: str) -> str:
    with pytest.raises(PydanticCustomError) as caught:
        read()
    context = caught.value.context
    assert context is not None
    assert message in context["message"]
    assert cure in context["cure"]
    return f"{context['message']} {context['cure']}"
