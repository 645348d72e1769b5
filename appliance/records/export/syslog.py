"""Syslog over TCP and TLS: RFC 5424 messages in RFC 6587's counted octets, RFC 5425 over TLS.

Syslog has no acknowledgements. What comes nearest: a connection carries one batch, we end our half of it, and the
receiver, having read everything, ends its half. A receiver that went away with bytes unread answers with a reset
instead. So `deliver` knows the batch to be read, or not, or – where the receiver does not end connections in order –
cannot know.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

Proof = Literal["read", "unsure"]
"""read: the receiver has read the whole batch. unsure: its system has it, but the receiver gave no orderly end."""

_SEVERITY = 6
_HEAD_LIMIT = {"host": 255, "app": 48, "process": 128, "kind": 32}


class SyslogError(Exception):
    """The batch may not have been read; it has to be sent again."""


class Receiver(msgspec.Struct, frozen=True):
    """Where batches go. context: for TLS, None for plain TCP. timeout_s: for each step of a delivery."""

    host: str
    port: int
    context: ssl.SSLContext | None = None
    timeout_s: float = 10.0


def tls_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, the receiver's certificate and name checked. Raises OSError (ssl.SSLError) for bad files."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def message(body: bytes, *, moment: float, kind: str, facility: int, host: str, process: int) -> bytes:
    """One RFC 5424 message. body: UTF-8 on one line. moment: unix seconds. kind: its MSGID."""
    stamp = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = f"<{facility * 8 + _SEVERITY}>1 {stamp} {_word(host, 'host')} outpost {process} {_word(kind, 'kind')} - "
    return head.encode("ascii") + body


def frame(text: bytes) -> bytes:
    """A message behind its length in octets."""
    return b"%d %b" % (len(text), text)


def _word(text: str, what: str) -> str:
    """PRINTUSASCII without spaces, `-` for nothing."""
    return "".join(char if "!" <= char <= "~" else "?" for char in text)[: _HEAD_LIMIT[what]] or "-"


class Delivery:
    """One batch on its way, in a thread of its own; `abort` from any other thread ends it soon."""

    def __init__(self, receiver: Receiver, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._receiver = receiver
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._aborted = False

    def deliver(self, frames: Sequence[bytes]) -> Proof:
        """Connect, send, end the connection, and see how the receiver ends it. Blocks. Raises SyslogError."""
        receiver = self._receiver
        try:
            raw = socket.create_connection((receiver.host, receiver.port), receiver.timeout_s)
        except OSError as error:
            raise SyslogError(f"no connection to {receiver.host} port {receiver.port}: {_reason(error)}") from error
        self._socket = raw
        try:
            raw.settimeout(receiver.timeout_s)
            proof: Proof = "unsure"
            if not self._aborted:
                context = receiver.context
                proof = self._plain(raw, frames) if context is None else self._encrypted(raw, context, frames)
            if self._aborted:
                # What looks like the receiver's end was ours.
                raise SyslogError("the delivery was given up")
            return proof
        except OSError as error:
            raise SyslogError(f"{receiver.host} port {receiver.port}: {_reason(error)}") from error
        finally:
            self._socket = None
            raw.close()

    def abort(self) -> None:
        self._aborted = True
        current = self._socket
        if current is not None:
            with contextlib.suppress(OSError):
                current.shutdown(socket.SHUT_RDWR)

    def _plain(self, raw: socket.socket, frames: Sequence[bytes]) -> Proof:
        raw.sendall(b"".join(frames))
        raw.shutdown(socket.SHUT_WR)
        return self._ended(raw)

    def _encrypted(self, raw: socket.socket, context: ssl.SSLContext, frames: Sequence[bytes]) -> Proof:
        with context.wrap_socket(raw, server_hostname=self._receiver.host) as secure:
            # From here on `raw` is an empty shell; aborting has to reach the one that holds the connection.
            self._socket = secure
            secure.sendall(b"".join(frames))
            try:
                # Says that we are done, and waits for the receiver to say the same.
                raw = secure.unwrap()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError, TimeoutError):
                # Ended or kept open without a word: the bytes may have been lost on their way to the receiver.
                return "unsure"
            except ssl.SSLError:
                return "unsure"
            self._socket = raw
            with raw:
                with contextlib.suppress(OSError):
                    raw.shutdown(socket.SHUT_WR)
                return self._ended(raw)

    def _ended(self, raw: socket.socket) -> Proof:
        """After our end: read until the receiver's. Raises OSError for a reset."""
        deadline = self._monotonic() + self._receiver.timeout_s
        try:
            while raw.recv(4096):
                if self._monotonic() > deadline:
                    return "unsure"
        except TimeoutError:
            return "unsure"
        # The receiver may have ended its half before all of ours had come; then what came later is refused.
        while _unacknowledged(raw):
            if self._monotonic() > deadline:
                return "unsure"
            _raise_pending(raw)
            time.sleep(0.001)
        _raise_pending(raw)
        return "read"


def _unacknowledged(raw: socket.socket) -> int:
    """Bytes that the other side's system has not confirmed."""
    buffer = fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", buffer)[0])


def _raise_pending(raw: socket.socket) -> None:
    code = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise ConnectionResetError(code, "the receiver refused a part of the batch")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return (error.strerror or str(error) or type(error).__name__).lower()
