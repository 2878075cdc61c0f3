"""Events to subscribers, the log and the counters; and the figures of one process.

Rule 1. An event is published after its change was committed. A subscriber that fails is
logged: it can neither undo the change nor break the request.
Rule 2. An asynchronous subscriber runs beside the request. The number of calls that run is
limited for each kind of event, and what is dropped beyond it is counted.
Rule 3. A kind of event that a client without any genuine token can cause is logged once a
second, with the number of lines that were left out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

from handstamp.core.models import Client
from handstamp.engine.clocks import Clock, uptime
from handstamp.events import Event

logger = logging.getLogger("handstamp")

MAX_RUNNING = 1000
"""Calls of asynchronous subscribers that may run at once, for each kind of event: a kind
that a client can cause again and again takes nothing from the others."""
LOG_INTERVAL = 1.0
"""Seconds between two log lines of one kind of event (rule 3)."""
DRAIN_TIMEOUT = 2.0
"""Seconds that subscribers may delay a graceful stop."""

E = TypeVar("E", bound=Event)
Subscriber = Callable[[E], Awaitable[None] | None]


class ListenerState(StrEnum):
    """The state of the notification listener, for health pages.

    ``OFF``: not started, or the store has no channel. ``DISCONNECTED``: connecting, or the
    connection was lost. ``NO_DELIVERY``: LISTEN succeeds and nothing arrives.
    ``LISTENING``: the last round trip was answered.
    """

    OFF = "off"
    DISCONNECTED = "disconnected"
    NO_DELIVERY = "no_delivery"
    LISTENING = "listening"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of this process since it started.

    ``cached`` counts the entries that may be served without a query. ``notifications``
    counts what arrived on the channel, ``unknown_notifications`` what handstamp does not
    send. ``all_writers_notify`` is True if the trigger is complete. ``events`` counts by
    action.
    """

    cached: int
    hits: int
    misses: int
    queries: int
    pending_touches: int
    written_touches: int
    dropped_touches: int
    flushes: int
    open_connections: int
    listener: ListenerState
    notifications: int
    unknown_notifications: int
    all_writers_notify: bool
    events: Mapping[str, int]


class EventDispatcher:
    """Publishes each event to the subscribers of its class and of the classes above it."""

    def __init__(self, clock: Clock = uptime) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._next_line: dict[str, float] = {}
        self._suppressed: Counter[str] = Counter()
        self._subscribers: list[tuple[type[Event], Subscriber[Event]]] = []
        self._tasks: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._dropping: set[str] = set()

    def on(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Call ``subscriber`` with every event of this class or a subclass."""
        self._subscribers.append((kind, subscriber))  # type: ignore[arg-type]

    def publish(self, event: Event) -> None:
        """Count the event, log it and call its subscribers. Never raises."""
        self.counts[event.action] += 1
        level = logging.WARNING if event.alarming else logging.INFO
        if logger.isEnabledFor(level):
            self._log(level, event)
        for kind, subscriber in self._subscribers:
            if not isinstance(event, kind):
                continue
            try:
                result = subscriber(event)
            except Exception:
                _log_failure(event)
                continue
            if inspect.isawaitable(result):
                self._run(result, event)

    def _log(self, level: int, event: Event) -> None:
        """Log one line, or leave it out (rule 3). Its fields are the event's, with clients
        shown by their network."""
        action = event.action
        values = {f.name: getattr(event, f.name) for f in fields(event)}
        facts: dict[str, object] = {
            f"handstamp_{name}": repr(value) if isinstance(value, Client) else value
            for name, value in values.items()
        }
        if event.unauthenticated:
            now = self._clock()
            if now < self._next_line.get(action, now):
                self._suppressed[action] += 1
                return
            self._next_line[action] = now + LOG_INTERVAL
            suppressed = self._suppressed.pop(action, 0)
            if suppressed:
                facts["handstamp_suppressed"] = suppressed
        logger.log(level, action, extra={"action": action, **facts})

    def _run(self, result: Awaitable[None], event: Event) -> None:
        """Run a subscriber beside the request, or drop the call (rule 2)."""
        action, loop = event.action, asyncio.get_running_loop()
        tasks = self._tasks[action]
        if len(tasks) >= MAX_RUNNING:  # tasks of a closed loop are never done
            tasks -= {task for task in tasks if task.get_loop() is not loop}
        if len(tasks) >= MAX_RUNNING:
            self._drop(result, action)
            return

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not tasks:
                self._dropping.discard(action)

        task = asyncio.ensure_future(_contained(result, event))
        tasks.add(task)
        task.add_done_callback(done)

    def _drop(self, result: Awaitable[None], action: str) -> None:
        if inspect.iscoroutine(result):
            result.close()
        self.counts["subscriber_dropped"] += 1
        if action not in self._dropping:
            self._dropping.add(action)  # one line, until all of them are done
            logger.error(
                "subscribers are too slow: events %s are dropped",
                action,
                extra={"action": "subscriber_dropped"},
            )

    async def drain(self) -> None:
        """Wait for the subscribers that still run, for at most ``DRAIN_TIMEOUT``."""
        loop = asyncio.get_running_loop()
        running = [
            task
            for tasks in self._tasks.values()
            for task in tasks
            if task.get_loop() is loop
        ]
        self._tasks.clear()
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=DRAIN_TIMEOUT)
        for task in late:
            task.cancel()


async def _contained(result: Awaitable[None], event: Event) -> None:
    try:
        await result
    except Exception:
        _log_failure(event)


def _log_failure(event: Event) -> None:
    logger.exception(
        "a subscriber failed on %s", event.action, extra={"action": "subscriber_failed"}
    )
