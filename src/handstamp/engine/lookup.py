"""Group lookup: misses that come at the same time share one query.

Rule 1. Nobody waits for company. A lookup that finds a free lane leaves with whoever
asked in the same turn of the event loop; only while every lane is on its way do lookups
gather, and the next lane to come back takes all of them at once.
Rule 2. A group shares its query's fate, and nobody else's: one that is slow or fails
holds up and fails its own members only.
Rule 3. A client that goes away takes nobody along. It waits on a future of its own, and
the query belongs to the lane, not to whoever asked first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from handstamp.core.records import Record
from handstamp.stores.base import Store

LANES = 4
MOST = 1000
"""Digests in one query."""
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class Lookup:
    """Finds rows by digest, many in one round trip."""

    def __init__(self, store: Store, *, lanes: int = LANES, most: int = MOST) -> None:
        self._store = store
        self._lanes = lanes
        self._most = most
        self._away: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, asyncio.Future[Record | None]] = {}
        self._texts: dict[str, str] = {}
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
        futures = [self._join(digest) for digest in dict.fromkeys(digests)]
        self._texts.update(texts)
        found = [await asyncio.shield(future) for future in futures]
        return [record for record in found if record is not None]

    def _join(self, digest: str) -> asyncio.Future[Record | None]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._move(loop)
        future = self._waiting.get(digest)
        if future is None:
            future = self._waiting[digest] = loop.create_future()
            if not self._leaving:
                self._leaving = True
                loop.call_soon(self._leave)
        return future

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever waited on a loop that is gone waits no more, and its groups never
        come back."""
        self._loop = loop
        self._away, self._waiting, self._leaving = set(), {}, False
        self._texts = {}

    def _leave(self) -> None:
        """Send off as many groups as there are free lanes."""
        self._leaving = False
        while self._waiting and len(self._away) < self._lanes:
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

    async def _travel(self, group: dict[str, asyncio.Future[Record | None]]) -> None:
        self.groups += 1
        try:
            taken = (self._texts.pop(digest, None) for digest in group)
            texts = [text for text in taken if text is not None]
            asked = (list(group), texts) if texts else (list(group),)
            records = await self._store.find(*asked)
        except (Exception, asyncio.CancelledError) as exc:
            for future in group.values():
                if not future.done():
                    future.set_exception(exc)
                    future.exception()  # retrieved: whoever asked may have gone
            if not isinstance(exc, Exception):
                raise
            return
        found = {record.token_digest: record for record in records}
        for digest, future in group.items():
            if not future.done():
                future.set_result(found.get(digest))
