"""`handstamp migrate-tokens`: replace the plaintext tokens in a table by their digests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from time import monotonic
from typing import Annotated

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

from handstamp.cli.app import app, connected, fail, reason, required
from handstamp.doctor.infer import propose
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS, Connection
from handstamp.stores.plaintext import (
    MARKED,
    OTHER,
    OURS,
    Form,
    Rows,
    TokenMigration,
    check_columns,
    is_form,
    read_forms,
    words_of,
)
from handstamp.stores.resolve import Table, read_table
from handstamp.stores.shapes import UUID_PLAIN, TableShape, quoted

HASHED = replace(UUID_PLAIN, at_rest="prefixed")
"""The shape when all three names are given on the command line."""
_HOW = (
    "Compare the cookie of one of your own sessions with its row. If they are the same"
    " text, the form of that row is the form of tokens. If not, it is a form of digests,"
    " which must not be hashed again."
)
_LOCKED_AFTER = 60.0
"""Seconds without a hashed row until the rows that are left count as locked."""


@app.command("migrate-tokens")
def migrate_tokens(
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="DATABASE_URL",
            metavar="URL",
            help="The database: postgresql://user:password@host:port/name",
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="The table of sessions.")] = None,
    token: Annotated[str | None, typer.Option(help="The column of tokens.")] = None,
    id: Annotated[str | None, typer.Option(help="The column of ids.")] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORM",
            help="A form, from the list that is printed, in which your code stored the"
            " token itself. May be given several times.",
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Hash the rows of these forms.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, max=100_000, help="Rows in one transaction.")
    ] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing, as without --apply.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Change nothing. Fail if a row is not hashed."),
    ] = False,
) -> None:
    """Hash the plaintext tokens in a table, while the app runs.

    Lists the forms of the texts in the column. Changes nothing without --apply. Hashing
    cannot be undone: a digest that is hashed again is lost. No program can tell a digest
    from a token, so name the form of your tokens with --form. No user is signed out. You
    can stop it at any time, and start it again to continue.

    Exit status: 0 if it did what was asked; 1 if it could not, or if rows are left that are
    not hashed; 2 if the database did not answer.
    """
    dsn = required(dsn)
    if apply and (dry_run or verify):
        raise typer.BadParameter("--apply changes rows; --dry-run and --verify do not")
    for name in form or []:
        if name == OURS:
            raise typer.BadParameter(f"{OURS} rows are handstamp's own digests")
        if not is_form(name):
            raise typer.BadParameter(
                f"there is no form {name}: run without --form to see the forms there are"
            )
    names = {"table": table, "token": token, "id": id}
    given = {field: name for field, name in names.items() if name is not None}
    options = Options(frozenset(form or []), batch, apply=apply, verify=verify)
    try:
        asyncio.run(_run(dsn, given, options))
    except KeyboardInterrupt:
        raise fail("stopped; start it again to continue", status=130) from None
    except ConfigError as error:
        raise fail(str(error), status=1) from None


@dataclass(frozen=True, slots=True)
class Options:
    """The forms to hash, and how."""

    forms: frozenset[str]
    batch: int
    apply: bool
    verify: bool


async def _run(dsn: str, given: dict[str, str], options: Options) -> None:
    async with connected(dsn) as connection:
        try:
            shape, table = await _resolve(connection, given)
            rows, forms = await _count(connection, shape)
            total = sum(rows.forms.values())
            typer.echo(f"{shape.table}.{shape.token} holds {_rows(total)}")
            for form in forms:
                typer.echo(f"  {form.rows:>12}  {form.name}: {_describe(form)}")
            if rows.unhashed and options.apply:
                _require_form(shape, rows, options)
            if options.forms:
                migration = TokenMigration(shape, table, options.forms)
                if rows.unhashed and options.apply:
                    await _hash(connection, migration, options.batch)
                    rows, _ = await _count(connection, shape)
        except FAULTS as error:
            text = f"stopped: {reason(error)}; start it again to continue"
            raise fail(text, status=2) from None
    _conclude(rows, options)


async def _resolve(
    connection: Connection, given: dict[str, str]
) -> tuple[TableShape, Table]:
    """The shape of the table, with the names from the command line, and its columns.

    Raises :class:`ConfigError` if there is no such table, or if the column of tokens cannot
    hold digests.
    """
    name = given.get("table", UUID_PLAIN.table)
    table = await read_table(connection, quoted(replace(UUID_PLAIN, table=name).table))
    if table is None:
        hint = "" if "table" in given else ": name yours with --table"
        raise ConfigError(f"there is no table {name}{hint}")
    if {"table", "token", "id"} <= set(given):
        shape = replace(HASHED, **given)  # type: ignore[arg-type]
    else:
        proposed = propose(name, table, at_rest="prefixed").shape
        shape = replace(proposed, **given)  # type: ignore[arg-type]
    check_columns(shape, table)
    return shape, table


async def _count(connection: Connection, shape: TableShape) -> tuple[Rows, list[Form]]:
    """The forms of the texts in the column of tokens, with the number of rows of each."""
    forms = await read_forms(connection, shape.table, shape.token)
    return Rows(forms={form.name: form.rows for form in forms}), forms


def _describe(form: Form) -> str:
    if form.name != OTHER and form.name != MARKED:
        return words_of(form.name)
    lengths = f"{form.shortest} to {form.longest}"
    if form.shortest == form.longest:
        lengths = str(form.shortest)
    return f"{words_of(form.name)}; {lengths} characters, such as {form.sample}"


def _require_form(shape: TableShape, rows: Rows, options: Options) -> None:
    """Raise :class:`ConfigError` unless a form with rows was named."""
    if not options.forms:
        found = ", ".join(name for name in rows.forms if name != OURS)
        raise ConfigError(
            f"which rows of {shape.table} hold tokens? {_HOW} Then name the form with"
            f" --form: {found}"
        )
    if not any(rows.forms.get(form) for form in options.forms):
        raise ConfigError(f"no row of {shape.table} has this form: nothing was changed")


async def _hash(connection: Connection, migration: TokenMigration, size: int) -> None:
    """Hash every row of the forms, with a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    last, left = monotonic(), await migration.count(connection)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=left)
        async for batch in migration.run(connection, size=size):
            progress.advance(bar, batch.hashed)
            if batch.hashed:
                last = monotonic()
            elif monotonic() - last > _LOCKED_AFTER:
                raise fail("the rows that are left are locked by others", status=1)


class _Rate(ProgressColumn):
    """The column of the progress bar that shows rows per second."""

    def render(self, task: Task) -> Text:
        """See :meth:`ProgressColumn.render`."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s", "cyan")


def _conclude(rows: Rows, options: Options) -> None:
    """Print the result. Raises :class:`typer.Exit` if rows are left that are not hashed."""
    if not rows.forms:
        typer.echo("there is nothing to hash")
        return
    if not rows.unhashed:
        typer.echo('every row is hashed: set at_rest="prefixed" in the TableShape')
        return
    named = sum(rows.forms.get(form, 0) for form in options.forms)
    if options.apply:
        if named:
            typer.echo(
                f"{_rows(named)} could not be hashed: their digests are in other rows,"
                " or another program writes plaintext tokens"
            )
        if rows.unhashed > named:
            others = Rows(
                forms={n: r for n, r in rows.forms.items() if n not in options.forms}
            )
            typer.echo(f"rows of other forms are left as they were: {others}")
        raise typer.Exit(1)
    if options.verify:
        typer.echo(f"{_rows(rows.unhashed)} not hashed")
        raise typer.Exit(1)
    if named:
        typer.echo(f"nothing was changed: --apply would hash {_rows(named)}")
        return
    typer.echo(
        f"nothing was changed. {_HOW} To hash the rows of one form: --form FORM --apply"
    )


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"
