"""Addresses of databases: what they mean, what is refused by name, and that no password is ever repeated."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.settings import SettingsError, from_mapping
from appliance.settings.database_url import SOCKET_FOLDER, PostgresUrl, parse_postgres
from appliance.settings.units import BadForm


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgresql://u@h/d", PostgresUrl("u", "h", 5432, "d", "verify-full")),
        ("postgresql+asyncpg://u@h:6000/d?sslmode=require", PostgresUrl("u", "h", 6000, "d", "require")),
        ("postgres://u@localhost/d", PostgresUrl("u", "localhost", 5432, "d", "disable")),
        ("postgresql://u@127.0.0.1/d?sslmode=verify-full", PostgresUrl("u", "127.0.0.1", 5432, "d", "verify-full")),
        ("postgresql://u@[::1]:1/d", PostgresUrl("u", "::1", 1, "d", "disable")),
        ("postgresql://u@h/d?sslmode=disable", PostgresUrl("u", "h", 5432, "d", "disable")),
        ("postgresql://u@/d", PostgresUrl("u", SOCKET_FOLDER, 5432, "d")),
        ("postgresql://u@%2Frun%2Fpg:7/d", PostgresUrl("u", "/run/pg", 7, "d")),
        ("postgresql://a%40b@/d%20e?host=/run/pg&port=7", PostgresUrl("a@b", "/run/pg", 7, "d e")),
        (
            "postgresql://u@h/d?sslmode=require&sslrootcert=/ca.pem",
            PostgresUrl("u", "h", 5432, "d", "verify-ca", Path("/ca.pem")),
        ),
        (
            "postgresql://u@localhost/d?sslrootcert=/ca.pem&passfile=/p",
            PostgresUrl("u", "localhost", 5432, "d", "verify-full", Path("/ca.pem"), Path("/p")),
        ),
    ],
)
def test_servers(text: str, wanted: PostgresUrl) -> None:
    assert parse_postgres(text) == wanted
    assert from_mapping({"database": {"url": text}}).database_url == str(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("postgresql://u:hunter2@h/d", "a password does not belong"),
        ("postgresql://u@h/d?password=hunter2", "a password does not belong"),
        ("postgresql://:hunter2@h/d", "a password does not belong"),
        ("postgresql://h/d", "names no user"),
        ("postgresql://u@h", "names no database"),
        ("postgresql://u@h/d/e", "names no database"),
        ("postgresql://u@a,b/d", "several hosts"),
        ("postgresql://u@a:1,b:2/d", "cannot be told apart"),
        ("postgresql://u@h:0/d", "port"),
        ("postgresql://u@h:x/d", "cannot be told apart"),
        ("postgresql://u@-h/d", "the host is not"),
        ("postgresql://u@h/d?host=g", "given twice"),
        ("postgresql://u@h/d?sslmode=require&sslmode=disable", "sslmode is given twice"),
        ("postgresql://u@h/d?sslmode=prefer", "sslmode=prefer may go on without TLS"),
        ("postgresql://u@h/d?sslmode=yes", "sslmode is unknown"),
        ("postgresql://u@h/d?sslcert=/c.pem", "sslcert is not supported"),
        ("postgresql://u@h/d?options=-csearch_path%3Dx", "options is not supported"),
        ("postgresql://u@h/d?sslrootcert=ca.pem", "sslrootcert is not an absolute path"),
        ("postgresql://u@h/d?sslmode=disable&sslrootcert=/c", "sslrootcert has no use"),
        ("postgresql://u@/d?sslmode=require", "a Unix socket has no TLS"),
        ("postgresql://u@h/d#x", "'#'"),
        ("postgresql://u@h/d%0A", "control character"),
        ("postgresql://u@[h/d", "not a valid address"),
        ("postgresql+psycopg://u@h/d", "not supported"),
    ],
)
def test_other_servers_are_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"database": {"url": text}})
    (problem,) = caught.value.problems
    assert problem.key == "database.url"
    assert message in problem.message
    assert problem.cure
    assert "hunter2" not in str(problem)


NAME = st.text(string.ascii_letters + string.digits + "_-.@ %é/", min_size=1, max_size=12)
FILE = st.none() | st.text(string.ascii_letters + "/&=? ", min_size=1, max_size=12).map(lambda text: Path("/" + text))


@st.composite
def urls(draw: st.DrawFn) -> PostgresUrl:
    host = draw(st.sampled_from(["h", "db.example", "::1", "10.0.0.1", "/run/pg", "localhost"]))
    socket = host.startswith("/")
    mode = "disable" if socket else draw(st.sampled_from(["disable", "require", "verify-ca", "verify-full"]))
    certificate = None if mode in ("disable", "require") else draw(FILE)
    database = draw(NAME.filter(lambda text: "/" not in text))
    return PostgresUrl(draw(NAME), host, draw(st.integers(1, 65535)), database, mode, certificate, draw(FILE))


@given(urls())
def test_the_full_form_means_the_same(url: PostgresUrl) -> None:
    assert parse_postgres(str(url)) == url


@given(st.text(max_size=60))
def test_no_text_is_met_in_another_way(text: str) -> None:
    try:
        parse_postgres("postgresql://" + text)
    except BadForm as bad:
        assert bad.message
        assert bad.cure


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"password": {"env": "PW"}}, "password has no use with SQLite"),
        ({"url": "sqlite+aiosqlite:///x.db", "backup": "external"}, "backup has no use with SQLite"),
        ({"url": "postgresql://u@h/d?passfile=/p", "password": {"env": "PW"}}, "both password and passfile"),
        ({"url": "postgresql://u@h/d", "password": "hunter2"}, "a secret is not written into the file"),
        ({"url": "postgresql://u@h/d", "backup": "never"}, "expected"),
    ],
)
def test_what_does_not_go_together(section: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"database": section})
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
