"""The door: what all requests of one middleware have in common, whatever the transport.

Rule 1. What a request is asked at the door depends on its method and its headers alone,
and is the same under ASGI and WSGI. An adapter asks :meth:`Door.question`, puts the
question to the engine in its own way, and gives the answer to the request's handle.
Rule 2. A write that another site's page caused with our cookies is refused before anything
is read. (OWASP, Cross-Site Request Forgery Prevention: Fetch Metadata.) A write through the
handle (login, logout …) is refused likewise, also without cookies and for a safe method:
SameSite keeps our cookies off another site's form, but its answer could set and clear them.
Rule 3. A request whose answer could not carry our cookies never rotates.
Rule 4. A client may say of a request that it is no activity, but not of a write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from handstamp.config import Cookies, TrustedProxies
from handstamp.core.credentials import Credentials
from handstamp.core.origins import (
    SAFE_METHODS,
    is_cross_site,
    is_prefetch,
    is_subresource_of_other_site,
    is_write,
    read_origin,
)
from handstamp.engine.sessions import Sessions
from handstamp.engine.speech import Reader, Writer
from handstamp.errors import ConfigError, CrossSiteRequest

RawHeaders = Sequence[tuple[bytes, bytes]]
PASSIVE_HEADER = b"x-passive-request"
"""A request with this header authenticates without counting as activity, unless it writes
(rule 4)."""
PLAIN_METHODS = SAFE_METHODS - {"OPTIONS"}
"""Methods of requests that no page of another site can do harm with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to ask the engine about one request.

    ``sent`` as in :class:`Credentials`; there may be nothing to ask all the same.
    """

    credentials: Credentials
    passive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
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
    ) -> Door:
        """A door with a middleware's options. Raises :class:`ConfigError`."""
        if cross_site not in ("refuse", "allow"):
            raise ConfigError('cross_site must be "refuse" or "allow"')
        if outage not in ("ask", "refuse", "anonymous"):
            raise ConfigError('outage must be "ask", "refuse" or "anonymous"')
        speech = sessions.speech(cookies)
        return cls(
            sessions=sessions,
            cookies=speech.cookies,
            reader=speech.reader,
            writer=speech.writer,
            proxies=trusted_proxies or TrustedProxies(),
            trusted_origins=frozenset(map(read_origin, trusted_origins)),
            refuse_cross_site=cross_site == "refuse",
            outage=outage,
            bearer=bearer,
        )

    def question(
        self, method: str | None, headers: RawHeaders, *, takes_cookies: bool = True
    ) -> Question:
        """What to ask about a request; ``method`` is None for a WebSocket.

        ``takes_cookies`` says whether the answer to it can carry cookies at all. Raises
        :class:`CrossSiteRequest` (rule 2).
        """
        credentials = self.reader.read(headers, bearer=self.bearer)
        if not credentials.sent:
            return Question(credentials=credentials)
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
        return Question(credentials=credentials, passive=passive)

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
