"""Tokens in clear are replaced by their digests when they are first seen, beside the
request that showed them: nobody waits for it, and where it fails the next use tries again.
So does the next use where ``MOST`` replacements are under way: a table that is locked holds
up a bounded number of them, and of database connections.

Hash the tokens that a table still holds in clear, batch by batch, in place.

Rule 1. A row is found by either form of its token, so replacing one signs nobody out.
Rule 2. A batch is one short transaction over rows in id order. It waits for nobody:
locked rows are skipped, and come in the next pass.
Rule 3. What is hashed is left alone, so a run that was killed is simply started again.
Rule 4. Only texts of the forms that somebody named are hashed: a digest that is hashed
again is lost, and with it everybody's session.
Rule 5. Tokens never leave the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.catalog import Table
from handstamp.stores.connection import Connection, Database
from handstamp.stores.postgres import digest_of
from handstamp.stores.shapes import PREFIX, TableShape, quoted
from handstamp.stores.statements import Statements
from handstamp.stores.token_forms import form_of, is_form

MOST = 4


class TokenUpgrader:
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
            async with self._database.acquire_write() as connection:
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


_DIGEST = 64
PAUSE = 0.1
"""Seconds before the next pass, where the last one found nothing but locked rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one batch did: rows that now hold a digest, and rows that cannot, because
    another row holds that digest already."""

    hashed: int
    clashing: int = 0


class TokenMigration:
    """The statements for one table, and for texts of the forms that hold tokens in it.

    Raises :class:`ConfigError` for a table that cannot hold digests.
    """

    def __init__(self, shape: TableShape, table: Table, forms: Collection[str]) -> None:
        _check(shape, table)
        self._clear = _clear(shape, forms)
        name, id = quoted(shape.table), quoted(shape.id)
        self._count = f"select count(*) from {name} s where {self._clear}"  # noqa: S608
        self._first = self._statement(shape, table, "true", size="$1")
        beyond = f"s.{id} > $1::text::{_cast(table, shape.id)}"
        self._next = self._statement(shape, table, beyond, size="$2")

    async def count(self, connection: Connection) -> int:
        """Rows that hold a token in clear: a text of one of the forms."""
        return int(await connection.fetchval(self._count))

    async def run(self, connection: Connection, *, size: int) -> AsyncIterator[Batch]:
        """Hash until no row is left that can be hashed, ``size`` rows a batch.

        Yields after each batch, also after an empty one: whoever wants to stop stops.
        """
        last: str | None = None
        clashing = hashed = 0
        while True:
            row = await self._step(connection, last, size)
            last = row["last"]
            clashing += row["seen"] - row["hashed"]
            hashed += row["hashed"]
            yield Batch(hashed=row["hashed"], clashing=clashing)
            if last is not None:
                continue
            if await self.count(connection) <= clashing:
                return
            if not hashed:
                await asyncio.sleep(PAUSE)
            clashing = hashed = 0

    async def _step(self, connection: Connection, last: str | None, size: int) -> Any:
        async with connection.transaction():
            if last is None:
                return await connection.fetchrow(self._first, size)
            return await connection.fetchrow(self._next, last, size)

    def _statement(self, shape: TableShape, table: Table, where: str, *, size: str) -> str:
        """One batch. The digest is made of the row as it is when it is written, and only
        if it is still in clear then: whatever was hashed meanwhile is not hashed again."""
        name, id, token = map(quoted, (shape.table, shape.id, shape.token))
        digest = f"'{PREFIX}' || encode(sha256(convert_to(s.{token}::text, 'UTF8')), 'hex')"
        return (
            f"with batch as (select s.{id} as id from {name} s"  # noqa: S608
            f" where {where} and {self._clear}"
            f" order by s.{id} limit {size} for update skip locked),"
            f" done as (update {name} s set {token} = {digest} from batch"
            f" where s.{id} = batch.id and {self._clear}"
            f" and not exists (select from {name} o"
            f" where o.{token} = ({digest})::{_cast(table, shape.token)})"
            f" returning 1)"
            " select (select count(*) from batch) as seen,"
            " (select count(*) from done) as hashed,"
            " (select id::text from batch order by id desc limit 1) as last"
        )


def _clear(shape: TableShape, forms: Collection[str]) -> str:
    """Whether a row's text has one of the forms. What begins like a digest of ours is none,
    whatever follows: such a text opens nothing."""
    text = f"s.{quoted(shape.token)}"
    named = ", ".join(f"'{form}'" for form in sorted(forms) if is_form(form)) or "null"
    begins = f"starts_with({text}::text collate \"C\", '{PREFIX}')"
    return f"not {begins} and {form_of(text)} in ({named})"


def _cast(table: Table, column: str) -> str:
    type = table.columns[column].type
    return "text" if type == "varchar" else type


def check_columns(shape: TableShape, table: Table) -> None:
    """Raise :class:`ConfigError` for a table without the columns of ids and tokens."""
    for field in ("id", "token"):
        if getattr(shape, field) not in table.columns:
            raise ConfigError(f"{shape.table} has no column {getattr(shape, field)}")


def _check(shape: TableShape, table: Table) -> None:
    check_columns(shape, table)
    key, holder = shape.id, shape.token
    if key == holder:
        raise ConfigError(
            f"{shape.table}.{key} is both id and token: hashing it would give every "
            "session another id"
        )
    token = table.columns[shape.token]
    place = f"{shape.table}.{token.name}"
    if token.type not in ("text", "varchar", "bpchar"):
        raise ConfigError(f"{place} is of type {token.type}, and digests are text")
    needed = len(PREFIX) + _DIGEST
    if token.length is not None and token.length < needed:
        raise ConfigError(
            f"{place} takes {token.length} characters and a digest needs {needed}. Mend it "
            f"with: alter table {quoted(shape.table)} alter column {quoted(token.name)} "
            "type varchar(255);"
        )
