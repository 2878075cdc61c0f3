"""A clock that a test moves by hand, under a whole engine or under one that runs already.

Rule 1. One time, two readings: the engine's own (call it) and a database's (``now``). They
move together, as they do in life.
Rule 2. It never goes back. To see what happens earlier, start earlier.

An outage of the database that a test switches on and off.

The application sees what it would see: look-ups, logins and revocations have no answer,
the bus falls silent, and the breaker lets nobody through.

An engine without a database, for fast tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from handstamp.engine.clocks import Clock
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.connection import Database
from handstamp.stores.memory import MemoryStore


class FrozenClock:
    """Time that stands still until :meth:`advance`.

    Built into a new engine: ``Sessions(MemoryStore(clock.now), clock=clock, …)``, which is
    what ``memory_sessions(clock=clock)`` does. ``start`` is an aware datetime.
    """

    def __init__(self, start: datetime | None = None, *, uptime: float = 1000.0) -> None:
        self._uptime = uptime
        self._database = start or datetime.now(UTC)

    def __call__(self) -> float:
        """The engine's reading, in seconds."""
        return self._uptime

    def __repr__(self) -> str:
        return f"FrozenClock({self._database.isoformat()})"

    def now(self) -> datetime:
        """The database's reading."""
        return self._database

    def advance(self, by: timedelta) -> None:
        """Let this much time pass at once. Raises :class:`ValueError` below zero."""
        if by < timedelta(0):
            raise ValueError("time does not go back; start the clock earlier")
        self._uptime += by.total_seconds()
        self._database += by


@contextmanager
def frozen_clock(sessions: Sessions) -> Iterator[FrozenClock]:
    """Stop the time of ``sessions``, and give the clock that moves it.

    For an engine that an application made by itself. Over a :class:`MemoryStore` the
    database's time stops too; a real database keeps its own, so there only what the engine
    counts down moves: how long it believes its cache, and how old a sign-in is. At the
    end time runs again from where it would have been, and nothing cached is believed.
    """
    if isinstance(sessions.clock, FrozenClock):
        yield sessions.clock
        return
    real, store = sessions.clock, sessions.store
    clock = FrozenClock(sessions.database_now(), uptime=real())
    if isinstance(store, MemoryStore):
        clock = FrozenClock(store._now(), uptime=real())
    now = _set_now(store, clock.now)
    _set_clock(sessions, clock)
    try:
        yield clock
    finally:
        _set_clock(sessions, real)
        _set_now(store, now)
        sessions._state.cache.doubt()


def _set_now(store: object, now: object) -> object:
    """Give a store in memory another clock; what it had."""
    if not isinstance(store, MemoryStore):
        return None
    was = store._now
    store.__dict__["_now"] = now
    return was


def _set_clock(sessions: Sessions, clock: Clock) -> None:
    """Replace the clock wherever the engine keeps it."""
    sessions.clock = clock
    object.__setattr__(sessions._state, "clock", clock)
    for part in (
        sessions._state.database_clock,
        sessions._state.dispatcher,
        sessions._listener,
        sessions._invalidator,
        sessions._refresher,
        sessions._authenticator,
    ):
        part._clock = clock


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
            sessions._state.cache.doubt()
            sessions._listener.proven_until = float("-inf")
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
        loop.call_soon_threadsafe(sessions._listener._lost.set)


_OF_SUPABASE = {"url", "cookie", "jwt_secret", "jwt_keys", "rules"}
SECRET = "a secret of the tests and of nothing else"  # noqa: S105


def memory_sessions(*, clock: FrozenClock | None = None, **options: Any) -> Sessions:
    """A :class:`Sessions` on a :class:`MemoryStore`: the whole engine and no I/O.

    Every user id exists and is active there; ``sessions.store.users`` says otherwise. With
    ``clock`` both the engine and the store go by it. ``options`` are those of
    :class:`Sessions`; the secret is one for tests unless you give one. Raises
    :class:`ConfigError` for those of :class:`SupabaseSessions`, whose tables nothing in
    memory stands in for.
    """
    if theirs := sorted(_OF_SUPABASE & set(options)):
        raise ConfigError(
            f"{', '.join(theirs)}: that is for SupabaseSessions, which needs its tables: "
            "make one on the address of a test database with the schema auth"
        )
    if not {"secret", "secrets"} & set(options):
        options["secret"] = SECRET
    if clock is None:
        return Sessions(MemoryStore(), **options)
    return Sessions(MemoryStore(clock.now), clock=clock, **options)
