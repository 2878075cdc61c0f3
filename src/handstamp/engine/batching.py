"""Group lookup: misses that come at the same time share one query.

Rule 1. Nobody waits for company. A lookup that finds a free lane leaves with whoever
asked in the same turn of the event loop; only while every lane is on its way do lookups
gather, and the next lane to come back takes all of them at once.
Rule 2. A group shares its query's fate, and nobody else's: one that is slow or fails
holds up and fails its own members only.
Rule 3. A client that goes away takes nobody along. It waits on a future of its own, and
the query belongs to the lane, not to whoever asked first.
Rule 4. What waits here belongs to requests that still wait: a digest, and the token that
its row may hold, leave with the last request that asked for them.

Flights: whoever asks one thing at one time shares one answer.

A flight goes on when nobody waits for it any more, because what it writes may be done
already. So their number is bounded: beyond ``most`` there is no answer for a new question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from handstamp.core.models import Record
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Store

MAX_CONCURRENT_BATCHES = 4
MOST = 1000
"""Digests in one query."""
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class _Question:
    """One digest, the token that its row may hold, and how many requests wait for it."""

    future: asyncio.Future[Record | None]
    text: str | None = field(repr=False)
    waiters: int = 0


class BatchLoader:
    """Finds rows by digest, many in one round trip."""

    def __init__(
        self, store: Store, *, pool: int = MAX_CONCURRENT_BATCHES, most: int = MOST
    ) -> None:
        self._store = store
        self._max_batches = pool
        self._most = most
        self._away: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, _Question] = {}
        self._leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.groups = 0

    async def find(
        self, digests: Sequence[str], texts: Mapping[str, str] = NO_TEXTS
    ) -> list[Record]:
        """The rows of these digests; asks together with whoever else asks now.

        ``texts`` are the tokens of digests whose row may hold the token itself. Raises
        :class:`SessionsUnavailable` if the group's query had no answer.
        """
        asked = {d: self._join(d, texts.get(d)) for d in dict.fromkeys(digests)}
        try:
            found = [await asyncio.shield(one.future) for one in asked.values()]
        finally:
            for digest, question in asked.items():
                self._quit(digest, question)
        return [record for record in found if record is not None]

    def _join(self, digest: str, text: str | None) -> _Question:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move(loop)
        question = self._waiting.get(digest)
        if question is None:
            question = self._waiting[digest] = _Question(loop.create_future(), text)
            if not self._leaving:
                self._leaving = True
                loop.call_soon(self._leave)
        question.waiters += 1
        return question

    def _quit(self, digest: str, question: _Question) -> None:
        question.waiters -= 1
        if not question.waiters and self._waiting.get(digest) is question:
            del self._waiting[digest]  # it has not left, and no request waits for it

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever waited on a loop that is gone waits no more, and its groups never
        come back."""
        self._loop = loop
        self._away, self._waiting, self._leaving = set(), {}, False

    def _leave(self) -> None:
        """Send off as many groups as there are free lanes."""
        self._leaving = False
        while self._waiting and len(self._away) < self._max_batches:
            group = dict(list(self._waiting.items())[: self._most])
            for digest in group:
                del self._waiting[digest]
            task = asyncio.get_running_loop().create_task(self._travel(group))
            self._away.add(task)
            task.add_done_callback(self._come_back)

    def _come_back(self, task: asyncio.Task[None]) -> None:
        self._away.discard(task)
        if self._waiting:
            self._leave()

    async def _travel(self, group: dict[str, _Question]) -> None:
        self.groups += 1
        try:
            texts = [one.text for one in group.values() if one.text is not None]
            asked = (list(group), texts) if texts else (list(group),)
            records = await self._store.find(*asked)
        except (Exception, asyncio.CancelledError) as exc:
            for question in group.values():
                if not question.future.done():
                    question.future.set_exception(exc)
                    question.future.exception()  # retrieved: whoever asked may have gone
            if not isinstance(exc, Exception):
                raise
            return
        found = {record.token_digest: record for record in records}
        for digest, question in group.items():
            if not question.future.done():
                question.future.set_result(found.get(digest))


K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

MAX_KEYS = 10_000


class SingleFlight(dict[K, asyncio.Task[T]]):
    """The questions under way, by what they ask."""

    def __init__(self, *, most: int = MAX_KEYS) -> None:
        super().__init__()
        self._most = most

    async def share(self, key: K, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to ``key``, asked by ``begin`` unless somebody on this loop is asking;
        no client that goes away takes the others along.

        Raises :class:`SessionsUnavailable` where too much is asked already.
        """
        flight, loop = self.get(key), asyncio.get_running_loop()
        if flight is None or flight.get_loop() is not loop:
            self._make_room(loop)
            flight = asyncio.create_task(begin())
            self[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self) < self._most:
            return
        for key in [k for k, flight in self.items() if flight.get_loop() is not loop]:
            del self[key]  # its loop is gone, so it never lands
        if len(self) >= self._most:
            raise SessionsUnavailable("too many refreshes are under way")

    def _land(self, key: K, done: asyncio.Task[T]) -> None:
        if self.get(key) is done:
            del self[key]
        if not done.cancelled():
            done.exception()  # retrieved: its passengers may all be gone
