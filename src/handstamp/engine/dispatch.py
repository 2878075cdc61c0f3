"""States.

Figures of one process, for metrics and health pages.

Who is told what happened: subscribers, the log, the counters.

An event is published after its change is committed. A subscriber that fails is logged
and contained; it can neither undo the change nor break the request.
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


logger = logging.getLogger("handstamp")

MOST_RUNNING = 1000
"""Calls of asynchronous subscribers that may be under way, for each kind of event: one kind
that a client can cause again and again takes nothing from the others."""
LOG_INTERVAL = 1.0
"""Seconds between log lines of one kind of event that a client without any genuine token
can cause."""
DRAIN_BUDGET = 2.0
"""Seconds that subscribers may hold up a graceful stop."""

E = TypeVar("E", bound=Event)
Subscriber = Callable[[E], Awaitable[None] | None]


class EventDispatcher:
    """Publishes events to whoever subscribed to their class or a parent of it."""

    def __init__(self, clock: Clock = uptime) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._next_line: dict[str, float] = {}
        self._suppressed: Counter[str] = Counter()
        self._subscribers: list[tuple[type[Event], Subscriber[Event]]] = []
        self._tasks: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._dropping: set[str] = set()

    def on(self, kind: type[E], subscriber: Subscriber[E]) -> None:
        """Call ``subscriber`` with every event of this kind."""
        self._subscribers.append((kind, subscriber))  # type: ignore[arg-type]

    def publish(self, event: Event) -> None:
        """Count the event, log it and tell the subscribers. Never raises."""
        self.counts[event.action] += 1
        level = logging.WARNING if event.alarming else logging.INFO
        if logger.isEnabledFor(level):
            self._log(level, event)
        for kind, subscriber in self._subscribers:
            if isinstance(event, kind):
                self._tell(subscriber, event)

    def _log(self, level: int, event: Event) -> None:
        """One line; of what anybody can cause, one for each interval and kind, with the
        number of those that were left out before it."""
        action, facts = event.action, _facts(event)
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

    def _tell(self, subscriber: Subscriber[Event], event: Event) -> None:
        try:
            answer = subscriber(event)
        except Exception:
            _complain(event)
            return
        if inspect.isawaitable(answer):
            self._run(answer, event)

    def _run(self, answer: Awaitable[None], event: Event) -> None:
        """Have a subscriber work beside the request, unless too many of its kind do."""
        action, loop = event.action, asyncio.get_running_loop()
        tasks = self._tasks[action]
        if len(tasks) >= MOST_RUNNING:  # those of a loop that is gone are never done
            tasks -= {task for task in tasks if task.get_loop() is not loop}
        if len(tasks) >= MOST_RUNNING:
            self._drop(answer, action)
            return
        task = asyncio.ensure_future(_contained(answer, event))
        tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, action))

    def _done(self, task: asyncio.Task[None], action: str) -> None:
        tasks = self._tasks[action]
        tasks.discard(task)
        if not tasks:
            self._dropping.discard(action)

    def _drop(self, answer: Awaitable[None], action: str) -> None:
        if inspect.iscoroutine(answer):
            answer.close()
        self.counts["subscriber_dropped"] += 1
        if action not in self._dropping:
            self._dropping.add(action)  # said once, until all of them are done
            logger.error(
                "subscribers are too slow: events %s are dropped",
                action,
                extra={"action": "subscriber_dropped"},
            )

    async def drain(self) -> None:
        """Wait for subscribers that are still at work, but not for ever."""
        loop = asyncio.get_running_loop()
        working = [
            task
            for tasks in self._tasks.values()
            for task in tasks
            if task.get_loop() is loop
        ]
        self._tasks.clear()
        if not working:
            return
        _, late = await asyncio.wait(working, timeout=DRAIN_BUDGET)
        for task in late:
            task.cancel()


async def _contained(answer: Awaitable[None], event: Event) -> None:
    try:
        await answer
    except Exception:
        _complain(event)


def _complain(event: Event) -> None:
    logger.exception(
        "a subscriber failed on %s", event.action, extra={"action": "subscriber_failed"}
    )


def _facts(event: Event) -> dict[str, object]:
    """What a log line may hold of an event; the ids, and clients by their network."""
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    return {
        f"handstamp_{name}": repr(value) if isinstance(value, Client) else value
        for name, value in values.items()
    }
