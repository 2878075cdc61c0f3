"""How both middlewares classify a request: their options, and what they ask the engine.

Rule 1. How a request is authenticated depends on its method and its headers only, and is
the same under ASGI and WSGI. A transport calls :meth:`MiddlewareOptions.classify`, passes
the result to the engine in its own way, and gives the engine's answer to the request's
handle (:mod:`handstamp._handle`).
Rule 2. A write that a page of another site caused with our cookies is refused before
anything is read (OWASP, Cross-Site Request Forgery Prevention: Fetch Metadata).
Rule 3. A request whose response cannot carry our cookies never rotates the tokens.
Rule 4. A client may declare that a request is no activity, but not that a write is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from handstamp.config import Cookies, TrustedProxies
from handstamp.core.cookies import Credentials, Reader, Writer
from handstamp.core.requests import (
    SAFE_METHODS,
    is_cross_site,
    is_prefetch,
    is_subresource_of_other_site,
    is_write,
    parse_origin,
)
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, CrossSiteRequest

App = TypeVar("App")
Request = TypeVar("Request", bound=Mapping[str, Any])
RawHeaders = Sequence[tuple[bytes, bytes]]
PASSIVE_HEADER = b"x-passive-request"
"""A request with this header is authenticated but is no activity, unless it is a write
(rule 4)."""
PLAIN_METHODS = SAFE_METHODS - {"OPTIONS"}
"""Methods of requests with which a page of another site can do no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRequest:
    """What the engine is asked about one request; nothing if it has no credentials."""

    credentials: Credentials
    passive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MiddlewareOptions:
    """The options of one middleware that do not depend on the transport, checked once."""

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
        """Check and complete a middleware's options. Raises :class:`ConfigError`."""
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
            trusted_origins=frozenset(map(parse_origin, trusted_origins)),
            refuse_cross_site=cross_site == "refuse",
            outage=outage,
            bearer=bearer,
        )

    def classify(
        self, method: str | None, headers: RawHeaders, *, takes_cookies: bool = True
    ) -> AuthRequest:
        """Return what the engine is to be asked about a request.

        ``method`` is None for a WebSocket. ``takes_cookies`` is whether the response can
        carry cookies at all. Raises :class:`CrossSiteRequest` (rule 2).
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
            declared = any(
                name.lower() == PASSIVE_HEADER and value != b"0" for name, value in headers
            )
            passive = passive or declared or is_prefetch(headers)
        return AuthRequest(credentials=credentials, passive=passive)

    def check_origin(self, headers: RawHeaders) -> None:
        """Raise :class:`CrossSiteRequest` if a page of another site made this request,
        unless the options allow that (rule 2)."""
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


class BaseMiddleware(Generic[App, Request]):
    """The options of both middlewares, and which requests they treat in a special way.

    ``sessions`` is the engine. ``cookies`` and ``trusted_proxies``: see their classes.
    ``exclude`` lists paths that are not authenticated at all; a path must be equal to one
    of them. ``passive`` selects requests that are no activity, such as polling: a list of
    paths, or a function of the request. (The header ``X-Passive-Request: 1`` selects a
    request too, unless it is a write.) ``cross_site="refuse"`` answers 403 to a write that
    a page of another site makes with our cookies; ``"allow"`` switches that off.
    ``trusted_origins`` lists other origins that belong to you. ``outage`` is what happens
    to a request whose session cannot be checked: ``"ask"`` answers 503 if the application
    reads the session, ``"refuse"`` answers 503 in any case, ``"anonymous"`` treats the user
    as logged out and keeps the cookies. With ``bearer=True`` a session token in
    ``Authorization: Bearer`` is accepted too. Raises :class:`ConfigError`.
    """

    _path_key: ClassVar[str] = "path"

    def __init__(
        self,
        app: App,
        sessions: Sessions,
        *,
        cookies: Cookies | None = None,
        trusted_proxies: TrustedProxies | None = None,
        exclude: Collection[str] = (),
        passive: Collection[str] | Callable[[Request], bool] = (),
        cross_site: str = "refuse",
        trusted_origins: Iterable[str] = (),
        outage: str = "ask",
        bearer: bool = False,
    ) -> None:
        self._check_server()
        self.app = app
        self._options = MiddlewareOptions.of(
            sessions,
            cookies=cookies,
            trusted_proxies=trusted_proxies,
            cross_site=cross_site,
            trusted_origins=trusted_origins,
            outage=outage,
            bearer=bearer,
        )
        self._exclude = frozenset(map(self._path_of_transport, exclude))
        self._passive_function = passive if callable(passive) else None
        paths = () if callable(passive) else passive
        self._passive_paths = frozenset(map(self._path_of_transport, paths))
        self._has_rules = bool(self._exclude or self._passive_paths) or callable(passive)
        # Bound here for the fast path: each attribute less is measurable there.
        self._read_fast, self._refresh_matches = (
            self._options.reader.read_fast,
            self._options.reader.refresh_matches,
        )
        self._hit = sessions.hit

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.sessions!r})"

    def _check_server(self) -> None:
        """Raise :class:`ConfigError` where this transport cannot work."""

    @staticmethod
    def _path_of_transport(path: str) -> str:
        """A path of the options as the server of this transport writes it."""
        return path

    def _is_special(self, request: Request) -> bool:
        """Whether a request needs the slow path because of its path or ``passive``."""
        return request.get(self._path_key, "") in self._exclude or self._is_passive(request)

    def _is_passive(self, request: Request) -> bool:
        if self._passive_function is not None:
            return self._passive_function(request)
        return request.get(self._path_key, "") in self._passive_paths
