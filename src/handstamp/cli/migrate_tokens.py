"""`handstamp migrate-tokens`: put digests where a table still holds tokens in clear."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.text import Text

from handstamp.cli.connecting import complain, connected, reason
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Table, read_table
from handstamp.stores.database import FAULTS
from handstamp.stores.doctor.column_names import says_digest
from handstamp.stores.doctor.examining import count_rows
from handstamp.stores.doctor.proposing import Rows, propose
from handstamp.stores.hashing import Hashing
from handstamp.stores.shapes import UUID_PLAIN, TableShape, quoted

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection

_BLOCKED = 60.0
"""Seconds without one hashed row after which the rows that are left count as locked."""


def migrate_tokens(
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="DATABASE_URL",
            metavar="URL",
            help="The database: postgresql://user:password@host:port/name",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="uuid: the column holds tokens in clear, whatever it looks like."
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="The table of sessions.")] = None,
    token: Annotated[str | None, typer.Option(help="The column of tokens.")] = None,
    id: Annotated[str | None, typer.Option(help="The column of ids.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at a time.")] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, and change nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only look whether a token in clear is left."),
    ] = False,
) -> None:
    """Hash the tokens that stand in clear in a table, while the app runs.

    Signs nobody out. Stop it whenever you like, and start it again to go on. Exit status:
    0 when no token in clear is left, 1 when some are, 2 when the database did not answer.
    """
    if not dsn:
        raise complain("which database? give --dsn or set DATABASE_URL", status=2)
    if shape not in (None, "uuid"):
        raise typer.BadParameter("there is only: uuid")
    names = {"table": table, "token": token, "id": id}
    given = {field: name for field, name in names.items() if name is not None}
    try:
        asyncio.run(_run(dsn, given, batch, shape, count_only=dry_run or verify))
    except KeyboardInterrupt:
        raise complain("stopped; start it again to go on", status=130) from None
    except ConfigError as error:
        raise complain(str(error), status=1) from None
    except typer.Exit as left:
        raise typer.Exit(0 if dry_run and left.exit_code == 1 else left.exit_code) from None


async def _run(
    dsn: str, given: dict[str, str], size: int, preset: str | None, *, count_only: bool
) -> None:
    async with connected(dsn) as connection:
        try:
            shape, table = await _target(connection, given, preset)
            hashing = Hashing(shape, table)
            left = await hashing.count(connection)
            typer.echo(f"{left} rows of {shape.table} hold a token in clear")
            if left and not count_only:
                await _hash(connection, hashing, left, size)
                left = await hashing.count(connection)
        except FAULTS as error:
            text = f"stopped: {reason(error)}; start it again to go on"
            raise complain(text, status=2) from None
    _conclude(left, counted=count_only)


async def _target(
    connection: Connection, given: dict[str, str], preset: str | None
) -> tuple[TableShape, Table]:
    """The shape of the table, with the names that were given; checked for its tokens."""
    name = given.get("table", UUID_PLAIN.table)
    table = await read_table(connection, quoted(replace(UUID_PLAIN, table=name).table))
    if table is None:
        hint = "" if "table" in given else ": name yours with --table"
        raise ConfigError(f"there is no table {name}{hint}")
    if {"table", "token", "id"} <= set(given):
        shape = replace(UUID_PLAIN, **given)  # type: ignore[arg-type]
    else:
        shape = replace(propose(name, table, preset=preset).shape, **given)  # type: ignore[arg-type]
    if preset is None and shape.token in table.columns:
        await _refuse_digests(connection, shape)
    return shape, table


async def _refuse_digests(connection: Connection, shape: TableShape) -> None:
    """A digest that is hashed again signs its owner out, for good."""
    rows = await count_rows(connection, shape.table, shape.token)
    if rows == Rows() and says_digest(shape.token):
        raise ConfigError(
            f"{shape.table} has no rows, and {shape.token} is called like a column of"
            " digests: there is nothing to hash. If your code stores the token itself"
            " there, say --shape uuid"
        )
    if rows.hex and rows.hex >= rows.other:
        raise ConfigError(
            f"{shape.table}.{shape.token} seems to hold SHA-256 digests already: every"
            " value has 64 digits of hex, and hashing digests would sign everybody out. If"
            " your code stores the token itself there, say --shape uuid"
        )


async def _hash(connection: Connection, hashing: Hashing, left: int, size: int) -> None:
    moved = monotonic()
    with _progress() as progress:
        bar = progress.add_task("", total=left)
        async for batch in hashing.run(connection, size=size):
            progress.advance(bar, batch.hashed)
            if batch.hashed:
                moved = monotonic()
            elif monotonic() - moved > _BLOCKED:
                raise complain("the rows that are left are locked by others", status=1)


def _progress() -> Progress:
    """On stderr, and only where somebody looks."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class _Rate(ProgressColumn):
    """Rows in a second."""

    def render(self, task: Task) -> Text:
        """See :meth:`ProgressColumn.render`."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s", "cyan")


def _conclude(left: int, *, counted: bool) -> None:
    if not left:
        typer.echo('no token in clear is left: set at_rest="prefixed" in the TableShape')
        return
    if not counted:
        typer.echo(
            f"{left} rows still hold a token in clear: their digests are in other rows, or"
            " somebody writes new ones"
        )
    raise typer.Exit(1)
