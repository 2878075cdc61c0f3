"""Concurrent calls for the same thing, done once: BatchLoader and SingleFlight.

BatchLoader: lookups that are made at the same time share one query.

Rule 1. No lookup waits for others to join it. While fewer than ``max_batches`` queries
run, the lookups of one turn of the event loop are sent as one batch. Only while that many
run do lookups collect; the next query that ends then sends all of them.
Rule 2. A batch shares the result of its own query only: a slow or failed query delays or
fails no other batch.
Rule 3. A caller that is cancelled cancels no other caller. Each waits for the future of a
digest; the query is a task of the loader, not of the first caller.
Rule 4. Only lookups with a waiting caller are kept: a digest, and the token that its row
may hold, are dropped when their last caller is cancelled before the query is sent.

SingleFlight: concurrent calls with the same key share one call.

Rule 5. The call goes on when all its callers are cancelled, because its write may already
be committed. So the number of calls is bounded: above ``max_keys``, a new key is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from handstamp.core.models import Record
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import PlaintextStore, Store

MAX_BATCHES = 4
"""Queries of one loader that may run at the same time."""
MAX_DIGESTS = 1000
"""Digests in one query."""
MAX_KEYS = 10_000
"""Calls of one SingleFlight that may run at the same time."""
NO_TOKENS: Mapping[str, str] = MappingProxyType({})

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Lookup:
    """One digest: its result, the token that its row may hold, its waiting callers."""

    future: asyncio.Future[Record | None]
    token: str | None = field(repr=False)
    waiters: int = 0


class BatchLoader:
    """Loads rows by digest, many in one round trip."""

    def __init__(
        self,
        store: Store,
        *,
        max_batches: int = MAX_BATCHES,
        max_digests: int = MAX_DIGESTS,
    ) -> None:
        self._store = store
        self._max_batches = max_batches
        self._max_digests = max_digests
        self._running: set[asyncio.Task[None]] = set()
        self._pending: dict[str, _Lookup] = {}
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.batches = 0
        """Queries sent so far."""

    async def load(
        self, digests: Sequence[str], tokens: Mapping[str, str] = NO_TOKENS
    ) -> list[Record]:
        """Return the rows of these digests, in one query with all concurrent lookups.

        ``tokens`` maps a digest to its token, where the row may hold the token itself.
        Raises :class:`SessionsUnavailable` if the query of the batch had no answer.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the queries of a closed loop never end
            self._loop = loop
            self._running, self._pending, self._scheduled = set(), {}, False
        lookups: dict[str, _Lookup] = {}
        for digest in dict.fromkeys(digests):
            lookup = self._pending.get(digest)
            if lookup is None:
                lookup = _Lookup(loop.create_future(), tokens.get(digest))
                self._pending[digest] = lookup
                if not self._scheduled:
                    self._scheduled = True
                    loop.call_soon(self._dispatch)
            lookup.waiters += 1
            lookups[digest] = lookup
        try:
            found = [await asyncio.shield(each.future) for each in lookups.values()]
        finally:
            for digest, lookup in lookups.items():
                lookup.waiters -= 1
                if not lookup.waiters and self._pending.get(digest) is lookup:
                    del self._pending[digest]  # rule 4
        return [record for record in found if record is not None]

    def _dispatch(self, _ended: asyncio.Task[None] | None = None) -> None:
        """Send the pending lookups, in as many batches as may run now."""
        self._scheduled = False
        while self._pending and len(self._running) < self._max_batches:
            batch = dict(list(self._pending.items())[: self._max_digests])
            for digest in batch:
                del self._pending[digest]
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            task.add_done_callback(self._dispatch)

    async def _run(self, batch: dict[str, _Lookup]) -> None:
        """Send one query, and give each lookup its row or the query's exception."""
        self.batches += 1
        try:
            tokens = [each.token for each in batch.values() if each.token is not None]
            if tokens and isinstance(self._store, PlaintextStore):
                records = await self._store.find_plaintext(list(batch), tokens)
            else:
                records = await self._store.find(list(batch))
        except (Exception, asyncio.CancelledError) as exc:
            for lookup in batch.values():
                if not lookup.future.done():
                    lookup.future.set_exception(exc)
                    lookup.future.exception()  # retrieved: the caller may be cancelled
            if not isinstance(exc, Exception):
                raise
            return
        found = {record.token_digest: record for record in records}
        for digest, lookup in batch.items():
            if not lookup.future.done():
                lookup.future.set_result(found.get(digest))


class SingleFlight(dict[K, asyncio.Task[T]]):
    """The calls that run now, by key."""

    def __init__(self, *, max_keys: int = MAX_KEYS) -> None:
        super().__init__()
        self._max_keys = max_keys

    async def do(self, key: K, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of ``call()``, or of the call with this key that runs now.

        Raises what the call raises, and :class:`SessionsUnavailable` where too many calls
        run already.
        """
        task, loop = self.get(key), asyncio.get_running_loop()
        if task is None or task.get_loop() is not loop:
            if len(self) >= self._max_keys:  # the calls of a closed loop never end
                for other in [k for k, t in self.items() if t.get_loop() is not loop]:
                    del self[other]
            if len(self) >= self._max_keys:
                raise SessionsUnavailable("too many refreshes are under way")

            def finish(done: asyncio.Task[T]) -> None:
                if self.get(key) is done:
                    del self[key]
                if not done.cancelled():
                    done.exception()  # retrieved: all its callers may be cancelled

            task = self[key] = asyncio.create_task(call())
            task.add_done_callback(finish)
        return await asyncio.shield(task)
