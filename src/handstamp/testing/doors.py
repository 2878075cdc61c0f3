"""Finding the middleware from a test client: which engine, and which cookies.

Rule 1. Nothing is imported to find it: frameworks are known by the names under which they
keep the application they call. (Django's clients go by its settings, and are asked for.)
Rule 2. The outermost middleware counts, as it does for a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from http.cookies import SimpleCookie
from types import FunctionType, MethodType
from typing import Any

from handstamp.asgi import SessionAuthMiddleware
from handstamp.config import Cookies
from handstamp.door import Door
from handstamp.engine.sessions import Sessions
from handstamp.engine.speech import Speech
from handstamp.errors import ConfigError

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
) -> tuple[Sessions, Speech]:
    """The engine behind a test client, and how its tokens travel.

    What is given counts before what is found. Raises :class:`ConfigError` where neither
    is there.
    """
    door = find_door(client) if sessions is None else look_for_door(client)
    if door is None:
        assert sessions is not None  # noqa: S101 - find_door would have raised
        return sessions, sessions.speech(cookies)
    sessions = sessions or door.sessions
    return sessions, sessions.speech(cookies or door.cookies)


def find_door(client: object) -> Door:
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


def look_for_door(client: object) -> Door | None:
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


def _door_of(thing: object) -> Door | None:
    own = _held(thing, "__dict__")
    door = own.get("_door") if isinstance(own, Mapping) else None
    return door if isinstance(door, Door) else None


def _door_of_django() -> Door:
    """Django's own clients go through MIDDLEWARE, which its settings describe."""
    from handstamp.django.settings import configuration

    described = configuration()
    options = {
        k: v for k, v in described.options.items() if k not in ("exclude", "passive")
    }
    return Door.of(described.sessions, **options)


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
