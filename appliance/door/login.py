"""Browser login to the operator's listener: authorization code with PKCE, and what its session cookie is worth.

Two cookies. The answer of a provider comes from another site, so the login under way is in a short-lived, sealed Lax
one; the session has a Strict one, which no other site's request carries. What changes something needs a header besides
(`x-outpost-csrf`), and an Origin that is ours. Names that are not ours in `Host` are refused, so that no page of
somebody else's can be pointed at this listener by a change in DNS.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from html import escape
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec
from aiohttp import web

from appliance.dialects.wire import encode
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.http import SAFE, SERVER, address
from appliance.door.render import respond
from appliance.errors import NotFound, OutpostError, PermissionDenied, RecordsUnavailable, Unauthenticated
from appliance.identity.authenticator import sign_in
from appliance.identity.claims import People, issued_at, person_of
from appliance.identity.jwt import BadToken
from appliance.identity.oidc import MAX_CODE, Provider
from appliance.identity.permissions import Role
from appliance.identity.principal import Principal
from appliance.identity.sessions import LOGIN_S, Logins, Session, Sessions, digest

logger = logging.getLogger("outpost.login")

Note = Callable[[str, dict[str, Any]], Awaitable[object]]
"""Puts an event, of a kind and with a body, onto the ledger. Raises RecordsUnavailable."""

CSRF_HEADER = "x-outpost-csrf"
CALLBACK = "/login/callback"
MAX_NEXT = 1024
_PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class SessionView(msgspec.Struct, frozen=True):
    """Who is logged in. csrf: send it as x-outpost-csrf with whatever changes something. Times in seconds."""

    csrf: str
    name: str
    role: Role
    organization: str
    user: str | None
    expires_in: float
    idle: float


class LoggedOut(msgspec.Struct, frozen=True):
    """provider_logout: where the browser may go to log out of the provider too."""

    provider_logout: str | None


class _Site(NamedTuple):
    """An address of the listener as browsers see it."""

    origin: str
    secure: bool

    @property
    def session_cookie(self) -> str:
        # The prefix keeps other hosts of the same domain from setting it.
        return "__Host-outpost_session" if self.secure else "outpost_session"

    @property
    def login_cookie(self) -> str:
        return "__Secure-outpost_login" if self.secure else "outpost_login"


class Login:
    """Logins, sessions and their endpoints. `change` what the settings say at a reload.

    clock: unix seconds. note: keeps who came and went; without that nobody is let in. refused: told of each login
    that is refused: its code, the client's address, the endpoint's path.
    """

    def __init__(
        self,
        people: People,
        sessions: Sessions,
        logins: Logins,
        *,
        clock: Callable[[], float],
        note: Note,
        refused: Callable[[str, str, str], None],
    ) -> None:
        self._people = people
        self._note = note
        self._refused = refused
        self._sessions = sessions
        self._logins = logins
        self._clock = clock
        self._providers: dict[str, Provider] = {}
        self._sites: dict[str, _Site] = {}

    def change(self, providers: Iterable[Provider]) -> None:
        """Go by these from now on; sessions of an issuer that has gone, or changed, end."""
        found = {each.name: each for each in providers if each.settings.login is not None}
        same = {each.settings.issuer for name, each in found.items() if self._is_as_before(name, each)}
        self._sessions.end_where(lambda session: session.issuer not in same)
        self._providers = found
        self._sites = {}
        for each in found.values():
            assert each.settings.login is not None
            parts = urlsplit(each.settings.login.redirect_base)
            host = parts.netloc.lower()
            self._sites[host] = _Site(f"{parts.scheme}://{host}", parts.scheme == "https")

    def _is_as_before(self, name: str, provider: Provider) -> bool:
        before = self._providers.get(name)
        return before is not None and before.settings == provider.settings

    # --- whose request it is ---

    def principal(self, request: web.BaseRequest) -> Principal | None:
        """The principal of a request's session; None without one. For requests that bring no other credential.

        Raises Unauthenticated when the session or whom it belongs to has ended, PermissionDenied for a request that
        another site may have made.
        """
        session = self._session(request)
        return None if session is None else session.principal

    def _session(self, request: web.BaseRequest) -> Session | None:
        if not self._sites or "Cookie" not in request.headers:
            return None
        site = self._sites.get(request.headers.get("Host", "").lower())
        if site is None:
            if any(name.endswith("outpost_session") for name in request.cookies):
                raise _foreign_host()
            return None
        id = request.cookies.get(site.session_cookie)
        if id is None:
            return None
        session = self._sessions.find(id)
        if session is None:
            raise Unauthenticated("The session has ended; log in again at /login.", code="session_ended")
        if request.method not in SAFE:
            _check_origin(request, site, session)
        try:
            session.principal = self._people.standing(session.principal)
        except Unauthenticated:
            self._sessions.end(id)
            raise
        return session

    # --- endpoints ---

    def endpoints(self) -> tuple[Endpoint, ...]:
        provider = Query("provider", "Name of the identity provider; needed where there are several.")
        return (
            Endpoint(
                "GET",
                "/login",
                "anyone",
                self.begin,
                summary="Send a browser to the identity provider.",
                query=(provider, Query("next", "Path to go to afterwards.")),
                media=("text/html",),
                status=302,
            ),
            Endpoint(
                "GET",
                CALLBACK,
                "anyone",
                self.callback,
                summary="Take a browser back from the identity provider.",
                media=("text/html",),
                query=(
                    Query("code", "What the provider gave for the tokens."),
                    Query("state", "What /login made."),
                    Query("error", "What the provider gave instead of a code."),
                    Query("iss", "The issuer, where the provider says it."),
                ),
            ),
            Endpoint(
                "POST",
                "/logout",
                "anyone",
                self.logout,
                identifies=True,
                summary="End the session of a browser.",
                gives=LoggedOut,
            ),
            Endpoint(
                "GET",
                "/admin/v1/session",
                "anyone",
                self.show,
                identifies=True,
                summary="Who is logged in, and what changes need as x-outpost-csrf.",
                gives=SessionView,
            ),
        )

    async def begin(self, visit: Visit) -> web.StreamResponse:
        request = visit.request
        site = self._site(request)
        query = request.query
        wanted = query.get("provider")
        goal = _local_path(query.get("next"))
        on_site = {name: each for name, each in self._providers.items() if _host_of(each) == _host(request)}
        if wanted is None and len(on_site) > 1:
            return _choice(visit, list(on_site), goal)
        provider = _chosen(on_site, wanted)
        old = request.cookies.get(site.session_cookie)
        cookie, login = self._logins.begin(provider.name, goal, replaces=None if old is None else digest(old))
        try:
            address = await provider.authorization_url(login.state, login.nonce, login.verifier)
        except OutpostError as error:
            return _trouble(visit, error)
        response = respond(b"", visit.id, status=302, headers={**_PAGE_HEADERS, "Location": address})
        response.set_cookie(
            site.login_cookie,
            cookie,
            path="/login",
            max_age=int(LOGIN_S),
            httponly=True,
            secure=site.secure,
            samesite="Lax",
        )
        return response

    async def callback(self, visit: Visit) -> web.StreamResponse:
        request = visit.request
        site = self._site(request)
        try:
            id, session, goal = await self._finish(request, site)
        except OutpostError as error:
            if isinstance(error, (Unauthenticated, PermissionDenied)):
                self._refused(error.code, address(request), CALLBACK)
            response = _trouble(visit, error)
        else:
            # Not a redirect: a browser would follow it as a request of the provider's site, without a Strict cookie.
            response = _page(
                visit,
                200,
                "Logged in",
                f"Logged in as {escape(session.name)}.",
                head=f'<meta http-equiv="refresh" content="0;url={escape(goal)}">',
                link=(goal, "Go on"),
            )
            response.set_cookie(site.session_cookie, id, path="/", httponly=True, secure=site.secure, samesite="Strict")
        response.del_cookie(site.login_cookie, path="/login", secure=site.secure, httponly=True, samesite="Lax")
        return response

    async def _finish(self, request: web.BaseRequest, site: _Site) -> tuple[str, Session, str]:
        """The session that an answer of a provider leads to."""
        query = request.query
        state, cookie = query.get("state", ""), request.cookies.get(site.login_cookie)
        login = self._logins.take(cookie, state) if cookie is not None else None
        if login is None:
            raise Unauthenticated("This login was not begun here, or took too long.", code="login_failed")
        provider = self._providers.get(login.provider)
        if provider is None:
            raise Unauthenticated("The identity provider is no longer in the settings.", code="login_failed")
        names_issuer = (await provider.endpoints()).names_issuer
        if query.get("iss") not in ((provider.settings.issuer,) if names_issuer else (None, provider.settings.issuer)):
            raise Unauthenticated("The answer is from another identity provider.", code="login_failed")
        if "error" in query:
            reason = "was given up" if query["error"] == "access_denied" else "failed at the identity provider"
            raise Unauthenticated(f"The login {reason}.", code="login_failed")
        code = query.get("code", "")
        if not 0 < len(code) <= MAX_CODE:
            raise Unauthenticated("The identity provider's answer has no code.", code="login_failed")
        try:
            claims = await provider.redeem(code, login.verifier, login.nonce, self._clock())
        except BadToken as bad:
            logger.warning("login_refused", extra={"provider": provider.name, "reason": bad.reason})
            raise
        person = person_of(claims, provider.rules)
        ends = self._clock() + self._sessions.absolute_s
        principal = await sign_in(self._people, person, "session", ends, issued_at(claims))
        if self._providers.get(login.provider) is not provider:
            raise Unauthenticated("The settings changed meanwhile; log in again.", code="login_failed")
        id, session = self._sessions.begin(principal, person.issuer, person.name, replaces=login.replaces)
        try:
            await self._note("session.begin", _event(session, request, provider.name))
        except BaseException:
            self._sessions.end(id)
            raise
        return id, session, login.goal

    async def logout(self, visit: Visit) -> web.StreamResponse:
        request = visit.request
        site = self._site(request)
        session = self._session(request)
        if session is None:
            raise Unauthenticated("Nobody is logged in.", code="session_ended")
        visit.principal = session.principal
        self._sessions.end(request.cookies[site.session_cookie])
        name = next((each.name for each in self._providers.values() if each.settings.issuer == session.issuer), None)
        try:
            await self._note("session.end", _event(session, request, name))
        except RecordsUnavailable:
            # Who wants to go is let go.
            logger.warning("logout_not_recorded", extra={"request_id": visit.id})
        gone = LoggedOut(self._provider_logout(session, site))
        response = respond(encode({"data": gone}), visit.id, headers={"Cache-Control": "no-store"})
        response.del_cookie(site.session_cookie, path="/", secure=site.secure, httponly=True, samesite="Strict")
        return response

    async def show(self, visit: Visit) -> web.StreamResponse:
        session = self._session(visit.request)
        if session is None:
            raise Unauthenticated("Nobody is logged in; go to /login.", code="session_ended")
        visit.principal = principal = session.principal
        view = SessionView(
            csrf=session.csrf,
            name=session.name,
            role=principal.role,
            organization=principal.organization,
            user=principal.user,
            expires_in=self._sessions.left_s(session),
            idle=self._sessions.idle_s,
        )
        return respond(encode({"data": view}), visit.id, headers={"Cache-Control": "no-store"})

    def _site(self, request: web.BaseRequest) -> _Site:
        """Raises NotFound where there is no login at all, PermissionDenied under a name that is not ours."""
        if not self._sites:
            raise NotFound("There is no browser login here; set identity.oidc[].login.")
        site = self._sites.get(_host(request))
        if site is None:
            raise _foreign_host()
        return site

    def _provider_logout(self, session: Session, site: _Site) -> str | None:
        for provider in self._providers.values():
            metadata, login = provider.source.metadata, provider.settings.login
            if provider.settings.issuer == session.issuer and metadata is not None and login is not None:
                if metadata.end_session_endpoint is None:
                    return None
                query = urlencode({"client_id": login.client_id, "post_logout_redirect_uri": f"{site.origin}/"})
                return f"{metadata.end_session_endpoint}{'&' if '?' in metadata.end_session_endpoint else '?'}{query}"
        return None


def _event(session: Session, request: web.BaseRequest, provider: str | None) -> dict[str, Any]:
    """Who came or went, for the ledger. Ids only: a name could not be erased from it."""
    return {"actor": session.principal.actor, "provider": provider, "address": address(request)}


def _check_origin(request: web.BaseRequest, site: _Site, session: Session) -> None:
    """Raises PermissionDenied for a change that did not come from our own pages."""
    if request.headers.get("Origin", "").lower() != site.origin:
        raise PermissionDenied("A request with a session must come from this listener's own pages.", code="csrf")
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), session.csrf.encode()):
        raise PermissionDenied(
            f"Send the header {CSRF_HEADER} with the csrf that GET /admin/v1/session gives.", code="csrf"
        )


def _chosen(providers: dict[str, Provider], wanted: str | None) -> Provider:
    """The provider of a login: the one that is named, or the only one. Raises NotFound."""
    found = providers.get(wanted) if wanted is not None else next(iter(providers.values()), None)
    if found is None:
        raise NotFound(f"There is no such identity provider; known are: {', '.join(sorted(providers)) or 'none'}.")
    return found


def _local_path(text: str | None) -> str:
    """A path on this listener; anything else is its root."""
    if text is None or len(text) > MAX_NEXT or not text.startswith("/") or text.startswith(("//", "/\\")):
        return "/"
    if not text.isascii() or not text.isprintable() or "\\" in text or text.startswith(("/login", "/logout")):
        return "/"
    return text


def _host(request: web.BaseRequest) -> str:
    return request.headers.get("Host", "").lower()


def _host_of(provider: Provider) -> str:
    assert provider.settings.login is not None
    return urlsplit(provider.settings.login.redirect_base).netloc.lower()


def _foreign_host() -> PermissionDenied:
    return PermissionDenied(
        "This listener is not known under the name in the header Host; use the address in login.redirect_base.",
        code="foreign_host",
    )


# --- pages ------------------------------------------------------------------------------------------


def _choice(visit: Visit, names: list[str], goal: str) -> web.Response:
    links = "".join(
        f'<li><a href="/login?{escape(urlencode({"provider": name, "next": goal}))}">{escape(name)}</a></li>'
        for name in names
    )
    return _page(visit, 200, "Log in", f"Log in with</p><ul>{links}</ul><p>")


def _trouble(visit: Visit, error: OutpostError) -> web.Response:
    title = HTTPStatus(error.status).phrase
    return _page(visit, error.status, title, escape(error.message), link=("/login", "Log in again"))


def _page(
    visit: Visit, status: int, title: str, body: str, *, head: str = "", link: tuple[str, str] | None = None
) -> web.Response:
    """A page. `body` and `head` are HTML; whoever makes them has escaped what is not ours."""
    anchor = f'<p><a href="{escape(link[0])}">{escape(link[1])}</a></p>' if link else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}<title>{escape(title)}</title></head>'
        f"<body><h1>{escape(title)}</h1><p>{body}</p>{anchor}<p>{escape(visit.id)}</p></body></html>"
    )
    headers = {**SERVER, **_PAGE_HEADERS, "x-request-id": visit.id}
    return web.Response(body=text.encode(), status=status, headers=headers)
