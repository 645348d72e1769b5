"""AWS's Signature Version 4 by botocore: each request is signed for itself, with its time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import yarl
from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]

from appliance.providers.auth_base import Surroundings, header_value

_PLACE = re.compile(r"[a-z0-9-]{1,64}")
_SIGNED = ("content-type",)
"""Of the headers that are sent anyway; others may change on their way."""


class _Credentials:
    """As botocore reads them."""

    __slots__ = ("access_key", "secret_key", "token")

    def __init__(self, access_key: str, secret_key: str, token: str | None) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self.token = token


class SigV4:
    """options: access_key, secret_key, session_token (of temporary credentials), region, service ("bedrock")."""

    per_request = True

    def __init__(self, options: Mapping[str, str], around: Surroundings) -> None:
        region, service = options["region"], options.get("service", "bedrock")
        if not _PLACE.fullmatch(region):
            raise ValueError("the region is none; write one such as eu-central-1")
        if not _PLACE.fullmatch(service):
            raise ValueError("the service is none; leave it out for bedrock")
        token = options.get("session_token")
        try:
            self._token = None if token is None else header_value(token)
            credentials = _Credentials(header_value(options["access_key"]), options["secret_key"], self._token)
        except ValueError as error:
            raise ValueError(f"access_key or session_token: {error}") from None
        self.secret = token or ""
        """The session's token, which goes into a header as it is."""
        self._signer = SigV4Auth(credentials, service, region)
        self._wall = around.wall

    async def headers(
        self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str], key: str | None = None
    ) -> Mapping[str, str]:
        return self.sign(method, url, body, sent)

    def sign(self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str]) -> Mapping[str, str]:
        """The headers Authorization and X-Amz-…. The URL is signed as it goes over the wire."""
        stamp = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        added = {"X-Amz-Date": stamp}
        if self._token is not None:
            added["X-Amz-Security-Token"] = self._token
        signed = {name: value for name, value in sent.items() if name.lower() in _SIGNED}
        request = AWSRequest(method, str(url), {**signed, **added}, body)
        request.context["timestamp"] = stamp
        signer = self._signer
        # Not `add_auth`: that takes the time from the system, and logs what it signs.
        text = signer.string_to_sign(request, signer.canonical_request(request))
        names = signer.signed_headers(signer.headers_to_sign(request))
        signature = signer.signature(text, request)
        added["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, SignedHeaders={names}, Signature={signature}"
        )
        return added

    def refused(self) -> None:
        pass
