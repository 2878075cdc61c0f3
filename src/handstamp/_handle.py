"""The handle: what the application has of its request's session.

Here is the part of it that both transports share and that needs no I/O: whose session it
is, what its user may do, and which cookies the response must set.

Rule 1. A handle is in one of three states: a session, no session, or unknown, because the
database gave no answer. An unknown handle raises :class:`SessionsUnavailable` when the
application reads it; a route that does not read it is not affected.
Rule 2. A write through the handle (login, logout …) is refused if a page of another site
asks for it, also without cookies and for a safe method: SameSite keeps our cookies off
another site's form, but the response to that form could set and clear them.
Rule 3. Cookies are set on the response of the request that issued their tokens, and only if
no newer pair may be in the browser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from handstamp._request import AuthRequest, MiddlewareOptions, RawHeaders
from handstamp.core.cookies import Credentials
from handstamp.core.models import (
    LOWEST,
    Answer,
    Authenticated,
    Client,
    Issued,
    Session,
    Unknown,
)
from handstamp.core.requests import read_client
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

OTHERS_REVOKED = "signed out from another session"
"""The reason of what ``revoke_others`` ends."""
_AUTHORIZATION = b"authorization"
_EDITED_HEADERS = frozenset({b"vary", b"Vary", b"set-cookie", b"Set-Cookie"})
_VARY = (b"vary", b"Cookie")
_VARY_BEARER = (b"vary", b"Authorization, Cookie")


class BaseHandle:
    """The session of one request, and the cookies that its response must set.

    The defaults are attributes of the class: on the fast path a handle needs almost none
    of them.
    """

    _session: Session | None = None
    _unknown: Unknown | None = None
    """The engine's answer where the database gave none."""
    _unknown_is_anonymous = False
    _has_credentials = False
    """Whether the request carries a cookie or a bearer token of ours, valid or not."""
    _bearer = False
    _was_read = False
    """Whether the application has read the session."""
    _started = False
    """Whether the response has started: no cookie can be set any more."""
    _set_cookies: tuple[bytes, ...] = ()
    _issued: Issued | None = None
    """The tokens that were issued for this request."""
    _delivered: Issued | None = None
    """The tokens whose cookies are on its response."""
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
        self._was_read = True
        if self._unknown is not None and not self._unknown_is_anonymous:
            raise SessionsUnavailable(self._unknown.cause)
        return self._session

    @property
    def user_id(self) -> str | None:
        """The id of the session's user, or None. Raises as :attr:`session` does."""
        session = self.session
        return None if session is None else session.user_id

    @property
    def is_authenticated(self) -> bool:
        """Whether there is a valid session. Raises as :attr:`session` does."""
        return self.session is not None

    @property
    def client(self) -> Client:
        """The client that made this request: its address and user agent, where known."""
        if self._client is None:
            self._client = read_client(self._peer, self._headers, self._options.proxies)
        return self._client

    def client_key(self) -> int:
        """Return the same number for requests of the same client, at little cost; for the
        engine."""
        raise NotImplementedError

    def report(self, event: Event) -> None:
        """Publish an event on the event loop, from any thread; for the engine."""
        self._options.sessions.publish(event)

    @property
    def sessions(self) -> Sessions:
        """The engine that this request's middleware uses."""
        return self._options.sessions

    def require(
        self, *, level: int | None = None, fresh_within: timedelta | None = None
    ) -> Session:
        """Return the session, or raise an exception with the status of the response.

        ``level`` is the lowest trust level allowed; a session without a level has the
        lowest one. ``fresh_within`` is the longest time since the login; a refresh is no
        login. Raises :class:`AuthenticationRequired`, :class:`FreshLoginRequired`,
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

    def _classify(self, method: str | None, *, takes_cookies: bool) -> AuthRequest:
        """See :meth:`MiddlewareOptions.classify`; reports a refusal."""
        try:
            request = self._options.classify(
                method, self._headers, takes_cookies=takes_cookies
            )
        except CrossSiteRequest:
            self._has_credentials = True
            credentials = self._options.reader.read(
                self._headers, bearer=self._options.bearer
            )
            # A forged cookie is not worth an event: any client can send one.
            if not self._options.sessions.is_forged(credentials):
                self.report(CrossSiteRefused())
            raise
        self._note(request.credentials)
        return request

    def _note(self, credentials: Credentials) -> None:
        self._has_credentials = credentials.sent
        self._bearer = credentials.sent and not credentials.ambient

    def _resolve(self, answer: Answer) -> None:
        """Take the engine's answer. Raises :class:`SessionsUnavailable` if there is none
        and the options refuse such a request."""
        if isinstance(answer, Unknown):
            self._unknown = answer
            self._unknown_is_anonymous = self._options.outage == "anonymous"
            if self._options.outage == "refuse":
                raise SessionsUnavailable(answer.cause)
        elif isinstance(answer, Authenticated):
            self._session = answer.session
            if answer.issued is not None:
                self._deliver(answer.issued)

    def _deliver(self, issued: Issued) -> None:
        """Set the cookies with these tokens on the response."""
        self._issued = issued
        received = self._options.reader.received(self._headers)
        self._set_cookies = self._options.writer.deliver(issued, received)

    def _first_frame(self) -> None:
        """The client sent a frame, so it has read the response to its handshake, and the
        cookies on it."""
        if self._delivered is not None:
            self._options.sessions.mark_seen(self._delivered)

    def _check_write(self) -> None:
        """Raise :class:`CrossSiteRequest` if a page of another site asks for this write.

        A request with a bearer token is allowed: a page of another site can send one only
        if this server permits it (CORS), and the write concerns no other session.
        """
        self._note(self._read_all(self._headers))
        if not self._bearer:
            self._check_origin()

    def _check_origin(self) -> None:
        try:
            self._options.check_origin(self._headers)
        except CrossSiteRequest:
            self.report(CrossSiteRefused())
            raise

    def _check_login(self) -> None:
        """Raise unless this response may set the cookies of a new session.

        The origin is checked with a bearer token too, because the response sets cookies.
        """
        if self._started:
            raise HandstampError(
                "log in and step up before the response starts: it carries the cookies"
            )
        self._check_origin()
        self._note(self._read_all(self._headers))
        if self._options.cookies.secure:
            return
        hosts = [v.decode("latin-1") for k, v in self._headers if k.lower() == b"host"]
        names = {re.sub(r":[0-9]*\Z", "", host.lower()) for host in hosts}
        if not names or names - self._options.cookies.insecure_hosts:
            raise ConfigError(
                "cookies without Secure are for your own machine: serve this host over "
                "https with Cookies(), or list it in Cookies.insecure_hosts"
            )

    def _logged_in(self, issued: Issued) -> Session:
        self._session, self._unknown = issued.session, None
        self._deliver(issued)
        return issued.session

    def _check_step_up(self) -> tuple[Session, tuple[bytes, ...]]:
        """Return the session whose tokens may be replaced, and its refresh tokens. Raises
        unless this response may set new cookies."""
        self._check_write()
        session = self.require()
        if self._bearer:
            raise HandstampError(
                "a client with a bearer token takes no cookies: call sessions.step_up() "
                "and put the tokens that it issued into the response"
            )
        self._check_login()
        refresh = self._options.reader.read(self._headers).refresh
        if self._issued is not None and self._issued.refresh_token is not None:
            refresh = (self._issued.refresh_token.encode(),)
        return session, refresh

    def _stepped_up(self, answer: Authenticated | None) -> Session:
        if answer is None:
            raise AuthenticationRequired  # the session ended meanwhile
        self._session = answer.session
        if answer.issued is not None:
            self._deliver(answer.issued)
        return answer.session

    async def _replace(self, user_id: str, remember: bool, claim: str | None) -> Issued:
        """Create a session in place of all those that the browser has, on any path.

        Beside a bearer token the sessions of the cookies end too: the response overwrites
        those cookies.
        """
        presented = [self._read_all(self._headers)]
        if self._bearer:
            cookies = [pair for pair in self._headers if pair[0].lower() != _AUTHORIZATION]
            presented.append(self._read_all(cookies))
        replaced: dict[str, None] = {}
        for credentials in presented:
            for session in await self._find_presented(credentials):
                replaced[session.id] = None
        return await self.sessions.create(
            user_id, client=self.client, remember=remember, replaces=replaced, claim=claim
        )

    async def _end(self) -> Sequence[Session]:
        """End every session that this request has a token of, and return them."""
        ended = await self._find_presented(self._read_all(self._headers))
        for session in ended:
            await self.sessions.revoke(session.id, reason="logout")
        return ended

    async def _find_presented(self, credentials: Credentials) -> list[Session]:
        return await self.sessions.find_presented(credentials, self.client, self._session)

    def _read_all(self, headers: RawHeaders) -> Credentials:
        options = self._options
        return options.reader.read(headers, bearer=options.bearer, every=True)

    def _check_logout(self) -> bool:
        """Whether there may be a session to end; needs no I/O.

        Raises :class:`CrossSiteRequest`, and :class:`SessionsUnavailable` if the database
        gave no answer, also with ``outage="anonymous"``: the session would live on.
        """
        self._check_write()
        self._was_read = True
        if self._unknown is not None:
            raise SessionsUnavailable(self._unknown.cause)
        credentials = self._read_all(self._headers)
        return self._session is not None or not self.sessions.is_forged(credentials)

    def _logged_out(self) -> None:
        self._session = self._issued = None
        # The cookies beside a bearer token belong to another session, which lives on.
        received = self._options.reader.received(self._headers)
        self._set_cookies = () if self._bearer else self._options.writer.clear(received)

    def response_headers(self, headers: Headers) -> Headers:
        """Return the application's response headers with those that this session adds.

        ``headers`` is a list of the caller's own: items may be added to it.
        """
        self._started = True
        if self._set_cookies:
            issued = self._issued
            if issued is not None and not self._options.sessions.may_deliver(issued):
                return self._edit(headers, ())  # the browser may have a newer pair
            self._delivered = issued
            return self._edit(headers, self._set_cookies)
        for name, _ in headers:  # a loop: any() costs a generator for every response
            if name in _EDITED_HEADERS:
                return self._edit(headers, ())
        if self._has_credentials or self._was_read:
            headers.append(_VARY_BEARER if self._bearer else _VARY)
        return headers

    def _edit(self, headers: Headers, cookies: tuple[bytes, ...]) -> Headers:
        names = self._options.writer.names
        if any(sets_cookie(header, names) for header in headers):
            self.report(CookieOverridden(dropped=bool(cookies)))
        if cookies:
            no_store = self._options.writer.no_store
            headers = with_cookies(headers, cookies, names, no_store)
        if cookies or self._has_credentials or self._was_read:
            return vary_on_cookie(headers, bearer=self._bearer)
        return headers
