"""An outage of the database that a test switches on and off.

The application sees what it would see: look-ups, logins and revocations have no answer,
the bus falls silent, and the breaker lets nobody through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.database import Database
from handstamp.stores.memory import MemoryStore

_CAUSE = "simulated outage"


@contextmanager
def outage(sessions: Sessions, *, just_begun: bool = False) -> Iterator[None]:
    """Inside of this, the database of ``sessions`` gives no answer.

    By default the outage has lasted for longer than anything cached is believed, so
    whoever asks for a session gets :class:`SessionsUnavailable`. With ``just_begun`` what
    is cached is believed for as long as the policy says. Works with a
    :class:`MemoryStore` and with the stores on PostgreSQL, for sync and async tests.
    Raises :class:`ConfigError` for a store of another kind.
    """
    with ExitStack() as ending:
        ending.enter_context(_silent(sessions.store))
        _deafen(sessions)
        if not just_begun:
            sessions._parts.cache.doubt()
            sessions._bus.proven_until = float("-inf")
        yield


@contextmanager
def _silent(store: object) -> Iterator[None]:
    if isinstance(store, MemoryStore):
        was, store.down = store.down, True
        try:
            yield
        finally:
            store.down = was
        return
    inner = getattr(store, "auth", store)  # of SupabaseTable
    databases = [v for v in vars(inner).values() if isinstance(v, Database)]
    if not databases:
        raise ConfigError(f"no outage can be simulated for {type(store).__name__}")
    with ExitStack() as ending:
        for database in databases:
            ending.enter_context(_unanswering(database))
        yield


@contextmanager
def _unanswering(database: Database) -> Iterator[None]:
    """No question gets through to this server, and no connection either."""

    def no_answer(**options: Any) -> NoReturn:
        raise SessionsUnavailable(_CAUSE)

    async def no_connection() -> NoReturn:
        raise SessionsUnavailable(_CAUSE)

    # On the object, in front of the class: the store holds this object in many places.
    was = dict(database.__dict__)
    database.__dict__.update(_asking=no_answer, connect=no_connection)
    try:
        yield
    finally:
        for name in ("_asking", "connect"):
            del database.__dict__[name]
            if name in was:  # an outage around this one
                database.__dict__[name] = was[name]


def _deafen(sessions: Sessions) -> None:
    """Cut the listening connection, on the loop that it belongs to."""
    loop = sessions._loop
    if loop is not None and not loop.is_closed():
        loop.call_soon_threadsafe(sessions._bus._lost.set)
