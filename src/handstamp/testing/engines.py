"""An engine under test: call it, stop its time, cut off its database, record its events.

Rule 1. An open engine is called on its own event loop, wherever that runs: in a test
client's portal, in the thread of a WSGI process, in the test itself. An engine that is not
open is opened on a loop of its own for one call and closed again, so that the client's
first request finds it as it was.
Rule 2. A :class:`FrozenClock` has one time and two readings: the engine's (call the clock)
and the database's (``now``). They move together and never back. To see what happens
earlier, start the clock earlier.
Rule 3. During an :func:`outage` the application sees a real outage: look-ups, logins and
revocations have no answer, and the connection for notifications is lost.
Rule 4. Calls that run at the same time wait at a barrier until all of them are ready. The
results come back in the order of the calls, exceptions included.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import signature
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from anyio.from_thread import start_blocking_portal

from handstamp.engine.clocks import Clock
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.events import Event
from handstamp.stores.connection import Database
from handstamp.stores.memory import MemoryStore

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=Event)

_opening = threading.Lock()


def call(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of a :class:`Sessions` from a test without ``await``.

        call(sessions.revoke_user, "alice", reason="left the company")

    Works on whichever event loop the engine runs, which :func:`handstamp.blocking.call`
    does not. Returns what the method returns. Raises what the method raises, and
    :class:`ConfigError` when this thread runs the engine's own event loop.
    """
    return run(_owner(function), partial(function, *args, **kwargs))


async def acall(
    function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a method of a :class:`Sessions` that may run on another event loop.

    For a test with ``await``. An engine that is not open is opened on this loop and stays
    open, as after a first request here. Returns and raises what the method does.
    """
    return await arun(_owner(function), partial(function, *args, **kwargs))


def run(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    """Run any work on the event loop of ``sessions``; returns its result (rule 1)."""
    with _opening:
        loop = _running_loop(sessions)
        if loop is not None and loop is asyncio._get_running_loop():
            raise ConfigError(
                "this Sessions is open on this very event loop: await its methods, and use "
                "an async client with alogin_as"
            )
        if loop is None:
            return run_in_thread(partial(_open_for, sessions, work))
    return asyncio.run_coroutine_threadsafe(_coroutine(work), loop).result()


async def arun(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    """The same as :func:`run` for a test with ``await``."""
    loop = _running_loop(sessions)
    if loop is None or loop is asyncio.get_running_loop():
        await sessions.open()
        return await work()
    running = asyncio.run_coroutine_threadsafe(_coroutine(work), loop)
    return await asyncio.wrap_future(running)


def run_in_thread(work: Callable[[], Awaitable[T]]) -> T:
    """Run work on a new event loop in a new thread, since this thread may run a loop."""
    with start_blocking_portal() as portal:
        return portal.call(work)


def close(sessions: Sessions) -> None:
    """Close ``sessions`` at the end of a test, if it is open on another thread's loop.

    An engine on the test's own loop is closed by the test, or ends with the loop.
    """
    loop = _running_loop(sessions)
    if loop is not None and loop is not asyncio._get_running_loop():
        asyncio.run_coroutine_threadsafe(sessions.close(), loop).result()


def _owner(function: Callable[..., object]) -> Sessions:
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, Sessions):
        raise ConfigError("give a method of a Sessions, such as sessions.revoke")
    return owner


def _running_loop(sessions: Sessions) -> asyncio.AbstractEventLoop | None:
    loop = sessions._loop
    return loop if loop is not None and loop.is_running() else None


async def _open_for(sessions: Sessions, work: Callable[[], Awaitable[T]]) -> T:
    async with sessions:
        return await work()


async def _coroutine(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


BARRIER_TIMEOUT = 30.0
"""Seconds that a thread waits until all the others are ready."""


def concurrently(
    n: int, function: Callable[[], T] | Callable[[int], T]
) -> list[T | Exception]:
    """Call ``function`` in ``n`` threads at the same time (rule 4).

    ``function`` gets its number, from 0, if it takes an argument. Returns, in the order of
    the numbers, what each call returned, or the exception that it raised.
    """
    numbered = _numbered(function)
    barrier = threading.Barrier(n, timeout=BARRIER_TIMEOUT)

    def one(number: int) -> T | Exception:
        barrier.wait()
        try:
            return numbered(number)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


async def aconcurrently(
    n: int, function: Callable[[], Awaitable[T]] | Callable[[int], Awaitable[T]]
) -> list[T | Exception]:
    """Await ``function`` in ``n`` tasks at the same time; else as :func:`concurrently`."""
    numbered, barrier = _numbered(function), asyncio.Barrier(n)

    async def one(number: int) -> T | Exception:
        await barrier.wait()
        try:
            return await numbered(number)
        except Exception as exc:
            return exc

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(n)]
    return [task.result() for task in tasks]


def _numbered(function: Callable[[], T] | Callable[[int], T]) -> Callable[[int], T]:
    """``function`` as one that takes a number, whether it uses the number or not."""
    try:
        signature(function).bind(0)
    except (TypeError, ValueError):
        plain = cast("Callable[[], T]", function)
        return lambda number: plain()
    return cast("Callable[[int], T]", function)


class FrozenClock:
    """Time that does not pass until :meth:`advance` is called (rule 2).

    A new engine takes it as ``Sessions(MemoryStore(clock.now), clock=clock, …)``, which is
    what ``memory_sessions(clock=clock)`` does. ``start`` is an aware datetime, the current
    time if None; ``uptime`` is the engine's first reading, in seconds.
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
        """Move both readings forward. Raises :class:`ValueError` if ``by`` is negative."""
        if by < timedelta(0):
            raise ValueError("time does not go back; start the clock earlier")
        self._uptime += by.total_seconds()
        self._database += by


@contextmanager
def frozen_clock(sessions: Sessions) -> Iterator[FrozenClock]:
    """Stop the time of an engine that the application made; yields the clock to move it.

    Over a :class:`MemoryStore` the database's time stops too. A real database keeps its own
    time, so only what the engine counts moves: how long it trusts its cache, and how old a
    login is. At the end time runs again from where it would have been, and every cached
    session is read again before it is trusted.
    """
    if isinstance(sessions.clock, FrozenClock):
        yield sessions.clock
        return
    real, store = sessions.clock, sessions.store
    if isinstance(store, MemoryStore):
        was, clock = store._now, FrozenClock(store._now(), uptime=real())
        store.__dict__["_now"] = clock.now
    else:
        was, clock = None, FrozenClock(sessions.database_now(), uptime=real())
    _set_clock(sessions, clock)
    try:
        yield clock
    finally:
        _set_clock(sessions, real)
        if isinstance(store, MemoryStore):
            store.__dict__["_now"] = was
        sessions._state.cache.doubt()


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


@contextmanager
def outage(sessions: Sessions, *, just_begun: bool = False) -> Iterator[None]:
    """Cut ``sessions`` off from its database for the time of a ``with`` block (rule 3).

    By default the outage has lasted for longer than the cache is trusted, so every request
    that needs a session gets :class:`SessionsUnavailable`. With ``just_begun`` the cache
    is trusted for as long as the policy allows. For sync and async tests, with a
    :class:`MemoryStore` and with the stores on PostgreSQL. Raises :class:`ConfigError` for
    any other store.
    """
    with ExitStack() as stack:
        store = sessions.store
        if isinstance(store, MemoryStore):
            stack.callback(setattr, store, "down", store.down)
            store.down = True
        else:
            databases = [v for v in vars(store).values() if isinstance(v, Database)]
            if not databases:
                kind = type(store).__name__
                raise ConfigError(f"no outage can be simulated for {kind}")
            for database in databases:
                stack.enter_context(_unreachable(database))
        loop = sessions._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(sessions._listener._lost.set)
        if not just_begun:
            sessions._state.cache.doubt()
            sessions._listener.proven_until = float("-inf")
        yield


@contextmanager
def _unreachable(database: Database) -> Iterator[None]:
    """Let no query and no new connection reach this server."""
    cause = "simulated outage"

    def no_answer(**options: Any) -> NoReturn:
        raise SessionsUnavailable(cause)

    async def no_connection() -> NoReturn:
        raise SessionsUnavailable(cause)

    # On the object, in front of the class: the store holds this object in many places.
    was = dict(database.__dict__)
    database.__dict__.update(_guard=no_answer, connect=no_connection)
    try:
        yield
    finally:
        for name in ("_guard", "connect"):
            del database.__dict__[name]
            if name in was:  # an outage around this one
                database.__dict__[name] = was[name]


class Recorded:
    """The events of one engine, oldest first, from the moment this object was made."""

    def __init__(self, sessions: Sessions) -> None:
        self._events: list[Event] = []
        sessions.on(Event, self._events.append)

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"Recorded({[event.action for event in self._events]})"

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, and of the kinds below it."""
        return [event for event in self if isinstance(event, kind)]

    def clear(self) -> None:
        """Forget the events so far."""
        self._events.clear()
