"""Finding the middleware from a test client: which engine, and which cookies.

Rule 1. Nothing is imported to find it: frameworks are known by the names under which they
keep the application they call. (Django's clients go by its settings, and are asked for.)
Rule 2. The outermost middleware counts, as it does for a request.

Signing in a test client without its sign-in form.

A real session is made by the application's own engine, and its cookies go into the
client's jar. Nothing is faked: the client's next request is authenticated, refreshed,
listed and revoked like any other.

A thief: a copy of a browser's cookies, used when their owner has moved on.

What happens next is the engine's to say: a refresh token that comes a second time, after
its successor was seen and grace is over, proves that two parties hold one session, and it
is revoked. The victim has to come back twice for that: once to be refreshed, and once with
the new cookies, for until then the first answer may simply have been lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from http.cookies import SimpleCookie
from types import FunctionType, MethodType
from typing import Any

from handstamp._request import MiddlewareOptions
from handstamp.asgi import SessionAuthMiddleware
from handstamp.config import Cookies
from handstamp.core.cookies import CookieTransport
from handstamp.core.models import Client, Issued
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.testing.concurrency import acall, across, call, cross
from handstamp.testing.cookies import Carried, carried_by, check, copy_to, give, is_async

# Where test clients and applications keep what they call next.
_NEXT = (
    *("app", "_app", "application", "_transport", "handler", "func"),
    *("wsgi_app", "asgi_app", "asgi_handler", "wsgi", "execution_policy"),
)
_DECLARED = ("user_middleware", "middleware")
"""Where Starlette and Litestar keep what they will build at their first request."""
_FARTHEST = 500
"""Objects to look at before giving up: a wrapped application is a few steps away."""


def find_speech(
    client: object, sessions: Sessions | None, cookies: Cookies | None
) -> tuple[Sessions, CookieTransport]:
    """The engine behind a test client, and how its tokens travel.

    What is given counts before what is found. Raises :class:`ConfigError` where neither
    is there.
    """
    door = find_door(client) if sessions is None else look_for_door(client)
    if door is None:
        assert sessions is not None  # noqa: S101 - find_door would have raised
        return sessions, sessions.cookie_transport(cookies)
    sessions = sessions or door.sessions
    return sessions, sessions.cookie_transport(cookies or door.cookies)


def find_door(client: object) -> MiddlewareOptions:
    """The door of the middleware around a test client's application.

    ``client`` may be the application too. Raises :class:`ConfigError` where there is none.
    """
    door = look_for_door(client)
    if door is None:
        raise ConfigError(
            f"no SessionAuthMiddleware was found from this {type(client).__name__}: give "
            "sessions=, and cookies= if they are not the default ones"
        )
    return door


def look_for_door(client: object) -> MiddlewareOptions | None:
    """The same, or None."""
    if isinstance(getattr(client, "cookies", None), SimpleCookie):
        return _door_of_django()
    waiting: deque[object] = deque([client])
    met: dict[int, object] = {}  # held, for the id of what is gone is given out again
    while waiting and len(met) < _FARTHEST:
        thing = waiting.popleft()
        if id(thing) in met:
            continue
        met[id(thing)] = thing
        door = _door_of(thing)
        if door is not None:
            return door
        waiting.extend(_leads(thing))
    return None


def _door_of(thing: object) -> MiddlewareOptions | None:
    own = _held(thing, "__dict__")
    door = own.get("_options") if isinstance(own, Mapping) else None
    return door if isinstance(door, MiddlewareOptions) else None


def _door_of_django() -> MiddlewareOptions:
    """Django's own clients go through MIDDLEWARE, which its settings describe."""
    from handstamp.django.settings import configuration

    described = configuration()
    options = {
        k: v for k, v in described.options.items() if k not in ("exclude", "passive")
    }
    return MiddlewareOptions.of(described.sessions, **options)


def _leads(thing: object) -> Iterator[object]:
    """What this object calls, as far as it shows."""
    # By type(): asking a lazy object for its class would evaluate it.
    if type(thing) is MethodType:
        yield thing.__self__
    elif type(thing) is FunctionType:
        yield from (
            cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)
        )
    else:
        yield from (held for name in _NEXT if (held := _held(thing, name)) is not None)
        for name in _DECLARED:
            yield from _to_be_built(_held(thing, name))


def _held(thing: object, name: str) -> object:
    """An attribute, unless asking for it fails, in whichever way."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _is_full(cell: Any) -> bool:
    try:
        return callable(cell.cell_contents)
    except ValueError:
        return False


def _to_be_built(declared: object) -> Iterator[object]:
    """The middleware that is named there with its options, made once more."""
    for entry in declared if isinstance(declared, list) else ():
        kind = _held(entry, "cls") or _held(entry, "middleware")
        if isinstance(kind, type) and issubclass(kind, SessionAuthMiddleware):
            yield kind(_nothing, *entry.args, **entry.kwargs)


async def _nothing(scope: object, receive: object, send: object) -> None:
    """Stands where the application will."""


_NOBODY = Client()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn(Issued):
    """What :func:`login_as` did: the session, its tokens as text, and its engine."""

    sessions: Sessions = field(repr=False)

    def revoke(self, *, reason: str = "revoked") -> bool:
        """End this session; whether it was live. As :meth:`Sessions.revoke`."""
        return call(self.sessions.revoke, self.session.id, reason=reason)

    async def arevoke(self, *, reason: str = "revoked") -> bool:
        """The same, for a test with await."""
        return await acall(self.sessions.revoke, self.session.id, reason=reason)


def login_as(
    client: object,
    user_id: str,
    *,
    remember: bool = False,
    signed_in_from: Client = _NOBODY,
    sessions: Sessions | None = None,
    cookies: Cookies | None = None,
) -> SignedIn:
    """Sign a test client in, without a request.

    ``client`` is the test client of Starlette, FastAPI, Litestar, Django, Django REST
    framework, Flask or Falcon, a WebTest ``TestApp``, or an ``httpx.Client`` on a WSGI
    application. ``sessions`` and ``cookies`` are found from the wrapped application
    unless they are given. ``signed_in_from`` is what the row remembers of the sign-in's
    address and browser. With :class:`SupabaseSessions` the jar gets the cookie of
    ``@supabase/ssr``, and the user must have their row in ``auth.users``.

    Raises :class:`ConfigError` where the client would not send the cookies or where the
    middleware is not found, and what :meth:`Sessions.create` raises.
    """
    if is_async(client):
        raise ConfigError(f"{type(client).__name__} is async: await alogin_as(…)")
    sessions, cookie_transport = find_speech(client, sessions, cookies)
    check(client, cookie_transport)  # before there is a session that nobody has
    create = partial(sessions.create, user_id, client=signed_in_from, remember=remember)
    issued = cross(sessions, create)
    return _give(client, issued, sessions, cookie_transport)


async def alogin_as(
    client: object,
    user_id: str,
    *,
    remember: bool = False,
    signed_in_from: Client = _NOBODY,
    sessions: Sessions | None = None,
    cookies: Cookies | None = None,
) -> SignedIn:
    """The same for a client whose requests are awaited.

    ``client`` is an ``httpx.AsyncClient`` on an ``ASGITransport``, Litestar's
    ``AsyncTestClient``, Quart's test client, Django's ``AsyncClient``, or Falcon's
    ``ASGIConductor``. The rest is as for :func:`login_as`.
    """
    if not is_async(client):
        raise ConfigError(f"{type(client).__name__} is not async: call login_as(…)")
    sessions, cookie_transport = find_speech(client, sessions, cookies)
    check(client, cookie_transport)  # before there is a session that nobody has
    create = partial(sessions.create, user_id, client=signed_in_from, remember=remember)
    if hasattr(client, "portal"):  # Litestar's serves on a loop of its own
        issued = await asyncio.to_thread(cross, sessions, create)
    else:
        issued = await across(sessions, create)
    return _give(client, issued, sessions, cookie_transport)


def _give(
    client: object, issued: Issued, sessions: Sessions, cookie_transport: CookieTransport
) -> SignedIn:
    give(client, issued, cookie_transport)
    known = {f.name: getattr(issued, f.name) for f in fields(issued)}
    return SignedIn(**known, sessions=sessions)


THIEF = Client(address="203.0.113.66", user_agent="Thief", user_agent_hash="f" * 64)
"""Who replays, as an event will say. The address is one of those kept for examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen:
    """The cookies of :func:`steal`, as the thief has them: they never change."""

    carried: Carried = field(repr=False)
    sessions: Sessions = field(repr=False)
    cookie_transport: CookieTransport = field(repr=False)

    @property
    def session_token(self) -> str:
        """What the thief could show as a bearer token."""
        return self.carried.session_token

    @property
    def refresh_token(self) -> str | None:
        """What :meth:`replay` presents; None where the table has none."""
        return self.carried.refresh_token

    def replay(self) -> Issued | None:
        """Present the refresh token, now; None if it was refused, as it should be.

        What the victim did until now is written down first, so that the table knows of
        it. Raises :class:`SessionsUnavailable`, and :class:`ConfigError` where there is
        no refresh token.
        """
        return cross(self.sessions, partial(_replay, self))

    async def areplay(self) -> Issued | None:
        """The same, for a test with await."""
        return await across(self.sessions, partial(_replay, self))

    def into(self, client: object) -> None:
        """Put the cookies into another client's jar, the thief's browser."""
        copy_to(client, self.carried, self.cookie_transport)


def steal(
    client: object, *, sessions: Sessions | None = None, cookies: Cookies | None = None
) -> Stolen:
    """Copy the session's cookies out of a test client's jar, and leave them there.

    ``sessions`` and ``cookies`` as for :func:`login_as`. Raises :class:`ConfigError`
    where the client holds none: nobody is signed in.
    """
    sessions, cookie_transport = find_speech(client, sessions, cookies)
    carried = carried_by(client, cookie_transport)
    if carried is None:
        raise ConfigError("this client holds no session to steal: sign it in first")
    return Stolen(carried=carried, sessions=sessions, cookie_transport=cookie_transport)


async def _replay(stolen: Stolen) -> Issued | None:
    if stolen.refresh_token is None:
        raise ConfigError(
            "there is no refresh token to replay in these cookies: use the copy as it is, "
            "with into(client)"
        )
    await stolen.sessions.flush()
    return await stolen.sessions.refresh(stolen.refresh_token, client=THIEF)
