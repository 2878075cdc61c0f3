"""Pyramid: ``config.include("handstamp.pyramid")``, and nothing to wrap.

    config.include("handstamp.pyramid")        # with settings, or:
    config.set_session_auth(sessions)

Rule 1. The settings are the options of :mod:`handstamp.options` after ``handstamp.``, such
as ``handstamp.database_url`` and ``handstamp.session_ttl = 900``.
Rule 2. The application that ``config.make_wsgi_app()`` returns authenticates each request
before any code of Pyramid runs. The middleware is around the execution policy, outside all
tweens, so the cookies are also on an error page.
Rule 3. ``request.session_auth`` is the handle and ``request.current_session`` the session.
Pyramid's own ``request.session`` is separate and is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pyramid.authorization import ACLHelper, Authenticated, Everyone
from pyramid.config import PHASE2_CONFIG, Configurator
from pyramid.events import ApplicationCreated
from pyramid.exceptions import PredicateMismatch
from pyramid.httpexceptions import exception_response
from pyramid.interfaces import ISecurityPolicy, ISessionFactory
from pyramid.request import Request
from pyramid.response import Response
from pyramid.viewderivers import INGRESS
from zope.interface import implementer

from handstamp.config import Cookies
from handstamp.core.models import Session
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, HandstampError
from handstamp.options import Settings, read_options
from handstamp.wsgi import ENVIRON_KEY, Handle, SessionAuthMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

PREFIX = "handstamp."
KEY = "handstamp"
"""Where the registry has the arguments of :func:`set_session_auth`."""

View = Callable[[Any, Any], Any]
GroupFinder = Callable[[str, Any], Iterable[str] | None]


def read_settings(settings: Mapping[str, Any]) -> Settings[Sessions]:
    """What the settings ``handstamp.*`` describe. Raises :class:`ConfigError`."""
    source = {key: value for key, value in settings.items() if key.startswith(PREFIX)}
    return read_options(source, PREFIX.__add__, engine=Sessions)


def check_names(registry: Any, cookies: Cookies) -> None:
    """Raise :class:`ConfigError` if Pyramid's own session uses a cookie of the same name,
    as far as its factory tells."""
    name = getattr(registry.queryUtility(ISessionFactory), "_cookie_name", None)
    if name in (cookies.session_name, cookies.refresh_name):
        raise ConfigError(
            f"Pyramid's own session uses a cookie {name!r} too: give its session factory "
            'another name, such as cookie_name="app_session"'
        )


def includeme(config: Configurator) -> None:
    """For ``config.include``. The security policy of this module is used only if the
    application sets no other. Raises :class:`ConfigError`."""
    config.add_directive("set_session_auth", set_session_auth)
    config.add_request_method(session_auth, reify=True)
    config.add_request_method(current_session, property=True)
    config.add_view_deriver(require_session, under=INGRESS, over="secured_view")
    config.add_exception_view(error_view, context=HandstampError)
    # After every policy that the application sets, and before its views.
    set_default = partial(_set_default_policy, config.registry)
    config.action(None, set_default, order=PHASE2_CONFIG + 1)
    config.add_subscriber(_wrap_router, ApplicationCreated)
    settings = config.get_settings()
    if any(key.startswith(PREFIX) for key in settings):
        found = read_settings(settings)
        config.set_session_auth(found.sessions, **found.middleware)


def _set_default_policy(registry: Any) -> None:
    if registry.queryUtility(ISecurityPolicy) is None:
        registry.registerUtility(SessionSecurityPolicy(), ISecurityPolicy)


def set_session_auth(config: Configurator, sessions: Sessions, **options: Any) -> None:
    """The directive ``config.set_session_auth(sessions, **options)``.

    ``options`` go to :class:`handstamp.wsgi.SessionAuthMiddleware`. If there are settings
    as well, this directive wins.
    """
    registry: Any = config.registry
    kept = config.introspectable(KEY, None, repr(sessions), "session auth")
    register = partial(registry.__setitem__, KEY, (sessions, options))
    config.action(KEY, register, introspectables=(kept,))


def session_auth(request: Request) -> Handle:
    """``request.session_auth``: the handle, with ``login``, ``logout`` and so on.

    Raises :class:`ConfigError` for a request that did not pass the middleware.
    """
    handle = request.environ.get(ENVIRON_KEY)
    if not isinstance(handle, Handle):
        raise ConfigError(
            "this request did not pass the middleware: serve what config.make_wsgi_app() "
            'returns after config.include("handstamp.pyramid"), and give a subrequest '
            f'its parent\'s environ["{ENVIRON_KEY}"]'
        )
    return handle


def current_session(request: Request) -> Session | None:
    """``request.current_session``: the session, or None.

    Raises :class:`SessionsUnavailable` when the database gave no answer.
    """
    session: Session | None = request.session_auth.session
    return session


@implementer(ISecurityPolicy)
class SessionSecurityPolicy:
    """Pyramid's security policy over our sessions, with access control lists.

    A user has the principals ``Authenticated`` and their id.
    ``groupfinder(userid, request)`` returns further principals, or None if the user does
    not exist any more: then the user has no principals. Subclass it for an ``identity`` of
    your own.
    """

    def __init__(self, groupfinder: GroupFinder | None = None) -> None:
        self._groupfinder = groupfinder
        self._acl = ACLHelper()

    def identity(self, request: Request) -> Any:
        """``request.identity``: the session, or None."""
        return session_auth(request).session

    def authenticated_userid(self, request: Request) -> str | None:
        """``request.authenticated_userid``: the user's id, or None."""
        return session_auth(request).user_id

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        """Whether the access control lists of the context allow it."""
        principals = _Principals(partial(self.principals, request))
        return self._acl.permits(context, principals, permission)

    def principals(self, request: Request) -> Sequence[str]:
        """The principals of the user of a request, without ``Everyone``."""
        user_id = self.authenticated_userid(request)
        if user_id is None:
            return ()
        groups = self._groupfinder(user_id, request) if self._groupfinder else ()
        return () if groups is None else (Authenticated, user_id, *groups)

    def remember(
        self, request: Request, userid: object, *, remember: bool = False
    ) -> list[tuple[str, str]]:
        """Log a user in whose identity is proven. Raises as ``login`` does.

        Returns an empty list, because the middleware adds the cookies to the response,
        whichever response that is.
        """
        session_auth(request).login(str(userid), remember=remember)
        return []

    def forget(self, request: Request) -> list[tuple[str, str]]:
        """Log out and clear the cookies. Returns an empty list, as :meth:`remember`."""
        session_auth(request).logout()
        return []


class _Principals:
    """Principals that are read when they are needed: for ``Everyone`` no session is."""

    def __init__(self, read: Callable[[], Sequence[str]]) -> None:
        self._read = read
        self._found: Sequence[str] | None = None

    def _find(self) -> Sequence[str]:
        if self._found is None:
            self._found = self._read()
        return self._found

    def __contains__(self, principal: object) -> bool:
        return principal == Everyone or principal in self._find()

    def __iter__(self) -> Iterator[str]:
        return iter((Everyone, *self._find()))

    def __repr__(self) -> str:
        return repr([Everyone, *(self._found or ())])


def require_session(view: View, info: Any) -> View:
    """The view options ``require_session=True`` and ``fresh_within=timedelta(…)``.

    They are checked before the view's permission, so a request without a session gets 401
    and not 403. Raises :class:`ConfigError` while the view is configured.
    """
    required = info.options.get("require_session", False)
    within = info.options.get("fresh_within")
    if not isinstance(required, bool):
        raise ConfigError(f"require_session must be True or False, not {required!r}")
    if within is not None and not isinstance(within, timedelta):
        raise ConfigError(f"fresh_within must be a timedelta, not {within!r}")
    if not required and within is None:
        return view

    def with_session(context: Any, request: Request) -> Any:
        session_auth(request).require(fresh_within=within)
        return view(context, request)

    return with_session


require_session.options = ("require_session", "fresh_within")  # type: ignore[attr-defined]


def error_view(exc: HandstampError, request: Request) -> Response:
    """The exception view of errors of handstamp: 401, 403 or 503.

    A fault of the server, such as :class:`ConfigError`, is left to the application's other
    exception views, or to the server's log.
    """
    if exc.status == 500:
        raise PredicateMismatch(type(exc).__name__)
    response = exception_response(exc.status)
    response.explanation = exc.public_message
    response.headers.update(exc.headers)
    return response


def _wrap_router(event: ApplicationCreated) -> None:
    """Put the middleware around the execution policy of a new router."""
    router, given = event.app, event.app.registry.get(KEY)
    if given is None:
        raise ConfigError(
            "no sessions: set handstamp.database_url and handstamp.secret, or call "
            "config.set_session_auth(sessions)"
        )
    sessions, options = given
    check_names(router.registry, sessions.cookie_transport(options.get("cookies")).cookies)
    policy = router.execution_policy

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = policy(environ, router)
        return cast(Iterable[bytes], response(environ, start_response))

    middleware = SessionAuthMiddleware(serve, sessions, **options)
    # The router calls the result of its policy with (environ, start_response), and the
    # middleware takes these. It calls the policy that the router had before.
    router.execution_policy = lambda environ, router: middleware


__all__ = (
    "SessionSecurityPolicy",
    "current_session",
    "error_view",
    "includeme",
    "require_session",
    "session_auth",
    "set_session_auth",
)
