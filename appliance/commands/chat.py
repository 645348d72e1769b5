"""`outpost chat`: a small terminal chat, for a first look at a running gateway."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import aiohttp
import msgspec
import typer

from appliance.commands.terminal import command, readable, visible
from appliance.dialects.sse import DONE, Framer


class ChatFailed(Exception):
    """The gateway refused or broke off; the text is for the user."""


def chat(
    message: Annotated[str | None, typer.Argument(help="Ask this and stop; left out, a conversation.")] = None,
    url: Annotated[
        str, typer.Option("--url", envvar="OUTPOST_URL", help="Base address of the gateway.")
    ] = "http://127.0.0.1:8080",
    key: Annotated[
        str | None,
        typer.Option("--key", envvar=["OUTPOST_API_KEY", "OPENAI_API_KEY"], help="API key.", show_envvar=True),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model name; left out, the first that chats.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=2.0, help="Left out: the model's own.")
    ] = None,
) -> None:
    """Talk to a model through the gateway."""
    if not key:
        typer.echo(
            "outpost: no API key: set OUTPOST_API_KEY or OPENAI_API_KEY, or pass --key; "
            f"{command()} keys create NAME makes one",
            err=True,
        )
        raise typer.Exit(1)
    try:
        _check(url, key)
        with asyncio.Runner() as runner:
            _converse(runner, url.rstrip("/"), key, model, system, temperature, message)
    except ChatFailed as error:
        typer.echo(f"outpost: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("")


def _check(url: str, key: str) -> None:
    """Raises ChatFailed: these could not even be sent."""
    if not url.startswith(("http://", "https://")):
        raise ChatFailed(_no_address(url))
    if not key.isascii() or not key.isprintable():
        raise ChatFailed("the API key holds characters that no key has, perhaps a line break: copy it anew")


def _no_address(url: str) -> str:
    return f"--url: {visible(url)} is no http(s) address; write e.g. http://127.0.0.1:8080"


def _unreachable(url: str, error: aiohttp.ClientError | ValueError) -> str:
    """What to do about a gateway that gave no answer."""
    if isinstance(error, aiohttp.ClientSSLError):
        cure = "the address and `server.tls` must fit; SSL_CERT_FILE names the certificates of an authority of your own"
        return f"no safe connection to {url} ({error}): {cure}"
    if isinstance(error, aiohttp.InvalidURL):
        return _no_address(url)
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError)):
        return f"no gateway answers at {url} ({error}); start one with: {command()} serve"
    return f"what answers at {url} is no gateway, or speaks https ({error}); name its address with --url"


def _converse(
    runner: asyncio.Runner,
    url: str,
    key: str,
    model: str | None,
    system: str | None,
    temperature: float | None,
    message: str | None,
) -> None:
    """Ask and answer in turn. The loop of `runner` stands still while a question is typed: only outside of it, in the
    main thread, does Ctrl-C end the waiting for a line."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    session = runner.run(_open(key))
    try:
        model = model or runner.run(_first_chat_model(session, url))
        if message is None:
            typer.echo(f"Talking to {visible(model)}. An empty line, Ctrl-D or Ctrl-C ends it.")
        while text := _ask() if message is None else message:
            messages.append({"role": "user", "content": text})
            body = {"model": model, "messages": messages, "stream": True}
            if temperature is not None:
                body["temperature"] = temperature
            messages.append({"role": "assistant", "content": runner.run(_answer(session, url, body))})
            if message is not None:
                return
    finally:
        runner.run(session.close())


async def _open(key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})


def _ask() -> str:
    try:
        return input("\n> ").strip()
    except EOFError:
        return ""


async def _first_chat_model(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/v1/models") as response:
            answer = await response.json()
    except (aiohttp.ClientError, ValueError) as error:
        raise ChatFailed(_unreachable(url, error)) from None
    if response.status != 200:
        raise ChatFailed(_message_of(answer))
    for card in answer["data"]:
        if "chat.completions" in card.get("capabilities", ()):
            return str(card["id"])
    raise ChatFailed("no model here can chat; see GET /v1/models")


async def _answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    said: list[str] = []
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise ChatFailed(_message_of(await response.json()))
            framer = Framer()
            async for data in response.content.iter_any():
                for event in framer.feed(data)[0]:
                    if _say(event, said):
                        return "".join(said)
    except aiohttp.ClientError as error:
        raise ChatFailed(f"the connection broke: {error}") from None
    raise ChatFailed("the answer broke off before its end")


def _say(event: bytes, said: list[str]) -> bool:
    """Print what an event brings; True at the end of the answer."""
    if event == DONE:
        sys.stdout.write("\n")
        return True
    chunk = msgspec.json.decode(event)
    if "error" in chunk:
        raise ChatFailed(_message_of(chunk))
    for choice in chunk["choices"]:
        text = choice["delta"].get("content") or ""
        said.append(text)
        sys.stdout.write(readable(text))
        sys.stdout.flush()
    return False


def _message_of(answer: Any) -> str:
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    return visible(str(error.get("message", "the gateway gave an answer that is no answer")))
