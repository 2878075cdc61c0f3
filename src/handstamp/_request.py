"""The door: what all requests of one middleware have in common, whatever the transport.

Rule 1. What a request is asked at the door depends on its method and its headers alone,
and is the same under ASGI and WSGI. A transport calls
:meth:`MiddlewareOptions.question`, passes the result to the engine in its own way, and
gives the answer to the request's handle.
Rule 2. A write that another site's page caused with our cookies is refused before anything
is read. (OWASP, Cross-Site Request Forgery Prevention: Fetch Metadata.) A write through the
handle (login, logout …) is refused likewise, also without cookies and for a safe method:
SameSite keeps our cookies off another site's form, but its answer could set and clear them.
Rule 3. A request whose answer could not carry our cookies never rotates.
Rule 4. A client may say of a request that it is no activity, but not of a write.

The handle: what an application holds of its request's session.

The sync half that every transport shares: who it is, what it may do, and which cookies
the response must carry. A handle is in one of three states: a session, no session, or
unresolved, when the database gave no answer. Asking an unresolved one raises; a route
that never asks never notices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from handstamp.config import Cookies, TrustedProxies
from handstamp.core.cookies import Credentials, Reader, Writer
from handstamp.core.models import (
    LOWEST,
    Answer,
    Authenticated,
    Client,
    Issued,
    Session,
    Unknown,
)
from handstamp.core.requests import (
    SAFE_METHODS,
    is_cross_site,
    is_prefetch,
    is_subresource_of_other_site,
    is_write,
    read_client,
    read_origin,
)
from handstamp.core.responses import Headers, sets_cookie, vary_on_cookie, with_cookies
from handstamp.engine.sessions import Sessions
from handstamp.errors import (
    AuthenticationRequired,
    ConfigError,
    CrossSiteRequest,
    FreshLoginRequired,
    HandstampError,
    SessionsUnavailable,
    StepUpRequired,
)
from handstamp.events import CookieOverridden, CrossSiteRefused, Event

RawHeaders = Sequence[tuple[bytes, bytes]]
PASSIVE_HEADER = b"x-passive-request"
"""A request with this header authenticates without counting as activity, unless it writes
(rule 4)."""
PLAIN_METHODS = SAFE_METHODS - {"OPTIONS"}
"""Methods of requests that no page of another site can do harm with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRequest:
    """What to ask the engine about one request.

    ``sent`` as in :class:`Credentials`; there may be nothing to ask all the same.
    """

    credentials: Credentials
    passive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MiddlewareOptions:
    """The settings of one middleware, read and checked once."""

    sessions: Sessions
    cookies: Cookies
    reader: Reader
    writer: Writer
    proxies: TrustedProxies
    trusted_origins: frozenset[bytes]
    refuse_cross_site: bool
    outage: str
    bearer: bool

    @classmethod
    def of(
        cls,
        sessions: Sessions,
        *,
        cookies: Cookies | None = None,
        trusted_proxies: TrustedProxies | None = None,
        cross_site: str = "refuse",
        trusted_origins: Iterable[str] = (),
        outage: str = "ask",
        bearer: bool = False,
    ) -> MiddlewareOptions:
        """A door with a middleware's options. Raises :class:`ConfigError`."""
        if cross_site not in ("refuse", "allow"):
            raise ConfigError('cross_site must be "refuse" or "allow"')
        if outage not in ("ask", "refuse", "anonymous"):
            raise ConfigError('outage must be "ask", "refuse" or "anonymous"')
        cookie_transport = sessions.cookie_transport(cookies)
        return cls(
            sessions=sessions,
            cookies=cookie_transport.cookies,
            reader=cookie_transport.reader,
            writer=cookie_transport.writer,
            proxies=trusted_proxies or TrustedProxies(),
            trusted_origins=frozenset(map(read_origin, trusted_origins)),
            refuse_cross_site=cross_site == "refuse",
            outage=outage,
            bearer=bearer,
        )

    def question(
        self, method: str | None, headers: RawHeaders, *, takes_cookies: bool = True
    ) -> AuthRequest:
        """What to ask about a request; ``method`` is None for a WebSocket.

        ``takes_cookies`` says whether the answer to it can carry cookies at all. Raises
        :class:`CrossSiteRequest` (rule 2).
        """
        credentials = self.reader.read(headers, bearer=self.bearer)
        if not credentials.sent:
            return AuthRequest(credentials=credentials)
        passive, writes = not takes_cookies, is_write(method, headers)  # rule 3
        if credentials.ambient:
            if writes:
                self.check_origin(headers)
            if is_subresource_of_other_site(headers):
                passive = True
                if self.cookies.same_site != "None":
                    credentials = replace(credentials, refresh=())
        if not writes:  # rule 4
            passive = passive or _asks_for_no_activity(headers) or is_prefetch(headers)
        return AuthRequest(credentials=credentials, passive=passive)

    def check_origin(self, headers: RawHeaders) -> None:
        """Raise :class:`CrossSiteRequest` if another site's page made this request, unless
        that is allowed here (rule 2)."""
        if self.refuse_cross_site and is_cross_site(headers, self.trusted_origins):
            raise CrossSiteRequest

    def check_same(self, outer: object) -> None:
        """Raise :class:`ConfigError` unless the handle of an outer middleware belongs to
        the same engine."""
        if getattr(outer, "sessions", None) is not self.sessions:
            raise ConfigError(
                "two SessionAuthMiddleware with different Sessions wrap one application: "
                "give both the same Sessions, or remove one"
            )


def _asks_for_no_activity(headers: RawHeaders) -> bool:
    return any(name.lower() == PASSIVE_HEADER and value != b"0" for name, value in headers)


_NOTABLE = frozenset({b"vary", b"Vary", b"set-cookie", b"Set-Cookie"})
_AUTHORIZATION = b"authorization"
_VARY = (b"vary", b"Cookie")
_VARY_BEARER = (b"vary", b"Authorization, Cookie")


class BaseHandle:
    """The session of one request, and what its response owes the browser.

    Attributes below are class-level defaults, because a request on the hot path needs
    almost none of them.
    """

    _session: Session | None = None
    _unknown: Unknown | None = None
    _lenient = False
    _sent = False
    _bearer = False
    _looked = False
    _started = False
    _set_cookies: tuple[bytes, ...] = ()
    _issued: Issued | None = None
    _delivered: Issued | None = None
    _client: Client | None = None

    _options: MiddlewareOptions
    _headers: RawHeaders
    _peer: object

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def session(self) -> Session | None:
        """The valid session of this request, or None.

        Raises :class:`SessionsUnavailable` when the database gave no answer.
        """
        self._looked = True
        if self._unknown is not None and not self._lenient:
            raise SessionsUnavailable(self._unknown.cause)
        return self._session

    @property
    def user_id(self) -> str | None:
        """Whose session it is, or None. Raises as :attr:`session` does."""
        session = self.session
        return None if session is None else session.user_id

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a valid session. Raises as :attr:`session` does."""
        return self.session is not None

    @property
    def client(self) -> Client:
        """Who makes this request, as far as it shows."""
        if self._client is None:
            self._client = read_client(self._peer, self._headers, self._options.proxies)
        return self._client

    def client_key(self) -> int:
        """The same number for requests of the same client; for the engine."""
        raise NotImplementedError

    def report(self, event: Event) -> None:
        """Publish an event on the event loop, whatever thread this is; for the engine."""
        self._publish(event)

    @property
    def sessions(self) -> Sessions:
        """The engine behind this request."""
        return self._options.sessions

    def require(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> Session:
        """The session, or an exception with the status to answer.

        ``level`` is the trust level needed; a session without one has the lowest.
        ``fresh_within`` is how long ago the user may have signed in; a refresh is no
        sign-in. Raises :class:`AuthenticationRequired`, :class:`FreshLoginRequired`,
        :class:`StepUpRequired` or :class:`SessionsUnavailable`.
        """
        session = self.session
        if session is None:
            raise AuthenticationRequired
        if level is not None and (session.level or LOWEST) < level:
            raise StepUpRequired(required=level, level=session.level)
        if fresh_within is not None:
            age = self._options.sessions.database_now() - session.created_at
            if age > fresh_within:
                raise FreshLoginRequired(within=fresh_within, age=age)
        return session

    def _question(self, method: str | None, *, takes_cookies: bool) -> AuthRequest:
        """What to ask the engine, once that is no cross-site write."""
        try:
            question = self._options.question(
                method, self._headers, takes_cookies=takes_cookies
            )
        except CrossSiteRequest:
            self._sent = True
            credentials = self._options.reader.read(
                self._headers, bearer=self._options.bearer
            )
            if not self._options.sessions.is_forged(credentials):  # anybody can make these
                self._publish(CrossSiteRefused())
            raise
        self._came_with(question.credentials)
        return question

    def _came_with(self, credentials: Credentials) -> None:
        self._sent = credentials.sent
        self._bearer = credentials.sent and not credentials.ambient

    def _resolve(self, answer: Answer) -> None:
        """Take the engine's answer. Raises :class:`SessionsUnavailable` where a request
        of unknown standing is refused at the door."""
        if isinstance(answer, Unknown):
            self._unknown = answer
            self._lenient = self._options.outage == "anonymous"
            if self._options.outage == "refuse":
                raise SessionsUnavailable(answer.cause)
            return
        if not isinstance(answer, Authenticated):
            return
        self._session = answer.session
        if answer.issued is not None:
            self._deliver(answer.issued)

    def _deliver(self, issued: Issued) -> None:
        self._issued = issued
        self._set_cookies = self._options.writer.deliver(issued, self._came())

    def _first_frame(self) -> None:
        """The client has read the answer to its handshake, and the cookies with it."""
        if self._delivered is not None:
            self._options.sessions.mark_seen(self._delivered)

    def _came(self) -> Mapping[str, str | None]:
        return self._options.reader.came(self._headers)

    def _publish(self, event: Event) -> None:
        self._options.sessions.publish(event)

    def _check_write(self) -> None:
        """Raise :class:`CrossSiteRequest` if another site's page asks for this write.

        A bearer token answers for itself: a page of another site can send one only with
        the consent of this server (CORS), and its session is the only one concerned.
        """
        self._came_with(self._read_all(self._headers))
        if not self._bearer:
            self._check_origin()

    def _check_origin(self) -> None:
        try:
            self._options.check_origin(self._headers)
        except CrossSiteRequest:
            self._publish(CrossSiteRefused())
            raise

    def _check_login(self) -> None:
        """Raise unless this response may carry a new session to this browser. It sets
        cookies, so its origin counts with a bearer token as well."""
        if self._started:
            raise HandstampError(
                "log in and step up before the response starts: it carries the cookies"
            )
        self._check_origin()
        self._came_with(self._read_all(self._headers))
        if not self._options.cookies.secure and not self._is_local():
            raise ConfigError(
                "cookies without Secure are for your own machine: serve this host over "
                "https with Cookies(), or list it in Cookies.insecure_hosts"
            )

    def _is_local(self) -> bool:
        hosts = [v.decode("latin-1") for k, v in self._headers if k.lower() == b"host"]
        names = {re.sub(r":[0-9]*\Z", "", host.lower()) for host in hosts}
        return bool(names) and names <= self._options.cookies.insecure_hosts

    def _logged_in(self, issued: Issued) -> Session:
        self._session, self._unknown = issued.session, None
        self._deliver(issued)
        return issued.session

    def _check_step_up(self) -> tuple[Session, tuple[bytes, ...]]:
        """The session whose level may be raised, and the refresh tokens that came with it.
        Raises unless this response may carry new cookies."""
        self._check_write()
        session = self.require()
        if self._bearer:
            raise HandstampError(
                "a client with a bearer token takes no cookies: call sessions.step_up() "
                "and put the tokens that it issued into the answer"
            )
        self._check_login()
        refresh = self._options.reader.read(self._headers).refresh
        if self._issued is not None and self._issued.refresh_token is not None:
            refresh = (self._issued.refresh_token.encode(),)
        return session, refresh

    def _stepped_up(self, answer: Authenticated | None) -> Session:
        if answer is None:
            raise AuthenticationRequired  # it ended meanwhile
        self._session = answer.session
        if answer.issued is not None:
            self._deliver(answer.issued)
        return answer.session

    async def _replace(self, user_id: str, remember: bool, claim: str | None) -> Issued:
        """A new session in place of those that the browser had, on whichever path.

        The cookies are written over, so their sessions end beside a bearer token as well.
        """
        presented = [self._read_all(self._headers)]
        if self._bearer:
            cookies = [pair for pair in self._headers if pair[0].lower() != _AUTHORIZATION]
            presented.append(self._read_all(cookies))
        held: dict[str, None] = {}
        for credentials in presented:
            for session in await self._find_presented(credentials):
                held[session.id] = None
        return await self.sessions.create(
            user_id, client=self.client, remember=remember, replaces=held, claim=claim
        )

    async def _end(self) -> Sequence[Session]:
        """End every session that this request holds a token of; those it was asked of."""
        held = await self._find_presented(self._read_all(self._headers))
        for session in held:
            await self.sessions.revoke(session.id, reason="logout")
        return held

    async def _find_presented(self, credentials: Credentials) -> list[Session]:
        return await self.sessions.find_presented(credentials, self.client, self._session)

    def _read_all(self, headers: RawHeaders) -> Credentials:
        door = self._options
        return door.reader.read(headers, bearer=door.bearer, every=True)

    def _check_logout(self) -> bool:
        """Whether there may be a session to end: a plain call without I/O.

        Raises :class:`CrossSiteRequest`; and :class:`SessionsUnavailable` where nobody
        could say, also for whoever is treated as anonymous: their session would live on.
        """
        self._check_write()
        self._looked = True
        if self._unknown is not None:
            raise SessionsUnavailable(self._unknown.cause)
        credentials = self._read_all(self._headers)
        return self._session is not None or not self.sessions.is_forged(credentials)

    def _logged_out(self) -> None:
        self._session = self._issued = None
        # The cookies beside a bearer token are of another session, which lives on.
        self._set_cookies = () if self._bearer else self._options.writer.clear(self._came())

    def response_headers(self, headers: Headers) -> Headers:
        """The application's response headers with what this request's session adds.

        ``headers`` is a list that nobody else holds: it may be added to.
        """
        self._started = True
        if self._set_cookies:
            return self._edit(headers, self._deliverable())
        for name, _ in headers:  # a loop: any() costs a generator for every response
            if name in _NOTABLE:
                return self._edit(headers, ())
        if self._sent or self._looked:
            headers.append(_VARY_BEARER if self._bearer else _VARY)
        return headers

    def _deliverable(self) -> tuple[bytes, ...]:
        """The cookies of this response, or none if they come too late."""
        issued = self._issued
        if issued is not None and not self._options.sessions.may_deliver(issued):
            return ()
        self._delivered = issued
        return self._set_cookies

    def _edit(self, headers: Headers, cookies: tuple[bytes, ...]) -> Headers:
        names = self._options.writer.names
        if any(sets_cookie(header, names) for header in headers):
            self._publish(CookieOverridden(dropped=bool(cookies)))
        if cookies:
            no_store = self._options.writer.no_store
            headers = with_cookies(headers, cookies, names, no_store)
        if cookies or self._sent or self._looked:
            return vary_on_cookie(headers, bearer=self._bearer)
        return headers
