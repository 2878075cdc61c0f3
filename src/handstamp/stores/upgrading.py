"""Tokens in clear are replaced by their digests when they are first seen, beside the
request that showed them: nobody waits for it, and where it fails the next use tries again.
So does the next use where ``MOST`` replacements are under way: a table that is locked holds
up a bounded number of them, and of database connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from handstamp.errors import SessionsUnavailable
from handstamp.stores.binding import digest_of
from handstamp.stores.database import Database
from handstamp.stores.shapes import PREFIX
from handstamp.stores.statements import Statements

MOST = 4


class Upgrading:
    """The replacements under way, of one table."""

    def __init__(
        self, database: Database, statements: Callable[[], Awaitable[Statements]]
    ) -> None:
        self._database = database
        self._statements = statements
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, stored: Iterable[str]) -> None:
        """Replace those of these column values that are tokens."""
        plain = [token for token in stored if not token.startswith(PREFIX)]
        if plain and self._has_room():
            task = asyncio.get_running_loop().create_task(self._upgrade(plain))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _has_room(self) -> bool:
        if len(self._tasks) < MOST:
            return True
        loop = asyncio.get_running_loop()
        # Those of a loop that is gone are never done.
        self._tasks -= {task for task in self._tasks if task.get_loop() is not loop}
        return len(self._tasks) < MOST

    async def _upgrade(self, plain: Sequence[str]) -> None:
        sql = await self._statements()
        # A database that may only be read, say: the next use tries again.
        with suppress(SessionsUnavailable):
            async with self._database.working() as connection:
                self._database.queries += 1
                await connection.execute(
                    sql.upgrade, plain, [PREFIX + digest_of(token) for token in plain]
                )

    async def stop(self) -> None:
        """Begin nothing more on this loop; what is left stands as it is."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
