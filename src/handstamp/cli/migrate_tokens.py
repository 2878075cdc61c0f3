"""`handstamp migrate-tokens`: put digests where a table still holds tokens in clear."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

from handstamp.cli._shared import complain, connected, reason
from handstamp.doctor.infer import propose
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Table, read_table
from handstamp.stores.connection import FAULTS
from handstamp.stores.plaintext import TokenMigration, check_columns
from handstamp.stores.shapes import UUID_PLAIN, TableShape, quoted
from handstamp.stores.token_forms import (
    MARKED,
    OTHER,
    OURS,
    Form,
    Rows,
    is_form,
    read_forms,
    words_of,
)

if TYPE_CHECKING:
    from handstamp.cli._shared import Connection

HASHED = replace(UUID_PLAIN, at_rest="prefixed")
"""Where nothing is proposed, because every name was given."""
_HOW = (
    "Compare the cookie of a session of your own with its row: if they are the same text,"
    " that form is the form of tokens; if not, it is one of digests, which must not be"
    " hashed again."
)
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
    table: Annotated[str | None, typer.Option(help="The table of sessions.")] = None,
    token: Annotated[str | None, typer.Option(help="The column of tokens.")] = None,
    id: Annotated[str | None, typer.Option(help="The column of ids.")] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORM",
            help="A form, as listed, in which your code stored the token itself. May be"
            " given several times.",
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Hash the rows of these forms.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at a time.")] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; so it is without --apply.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Change nothing; fail if a row is not hashed."),
    ] = False,
) -> None:
    """Hash the tokens that stand in clear in a table, while the app runs.

    Lists the forms of what stands there, and changes nothing without --apply. Hashing
    cannot be undone: digests that are hashed again are lost, and a look cannot tell them
    from tokens, so name the form of your tokens with --form. Signs nobody out. Stop it
    whenever you like, and start it again to go on.

    Exit status: 0 when it did what was asked, 1 when it could not or rows are left that are
    not hashed, 2 when the database did not answer.
    """
    if not dsn:
        raise complain("which database? give --dsn or set DATABASE_URL", status=2)
    if apply and (dry_run or verify):
        raise typer.BadParameter("--apply changes rows; --dry-run and --verify do not")
    forms = _checked(form or [])
    names = {"table": table, "token": token, "id": id}
    given = {field: name for field, name in names.items() if name is not None}
    asked = Asked(forms, batch, apply=apply, verify=verify)
    try:
        asyncio.run(_run(dsn, given, asked))
    except KeyboardInterrupt:
        raise complain("stopped; start it again to go on", status=130) from None
    except ConfigError as error:
        raise complain(str(error), status=1) from None


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asked for: the forms to hash, and how."""

    forms: frozenset[str]
    batch: int
    apply: bool
    verify: bool


def _checked(forms: Sequence[str]) -> frozenset[str]:
    for form in forms:
        if form == OURS:
            raise typer.BadParameter(f"{OURS} are digests of handstamp's own")
        if not is_form(form):
            raise typer.BadParameter(
                f"there is no form {form}: start without --form to see the forms there are"
            )
    return frozenset(forms)


async def _run(dsn: str, given: dict[str, str], asked: Asked) -> None:
    async with connected(dsn) as connection:
        try:
            shape, table = await _target(connection, given)
            rows = await _listed(connection, shape)
            if rows.unhashed and asked.apply:
                _refuse(shape, rows, asked)
            hashing = TokenMigration(shape, table, asked.forms) if asked.forms else None
            if rows.unhashed and asked.apply and hashing is not None:
                await _hash(connection, hashing, asked.batch)
                rows = await _listed(connection, shape, quiet=True)
        except FAULTS as error:
            text = f"stopped: {reason(error)}; start it again to go on"
            raise complain(text, status=2) from None
    _conclude(shape, rows, asked)


async def _target(
    connection: Connection, given: dict[str, str]
) -> tuple[TableShape, Table]:
    """The shape of the table, with the names that were given; checked for its tokens."""
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


async def _listed(
    connection: Connection, shape: TableShape, *, quiet: bool = False
) -> Rows:
    """The forms of the texts in the column, said line by line."""
    forms = await read_forms(connection, shape.table, shape.token)
    rows = Rows(forms={form.name: form.rows for form in forms})
    if not quiet:
        typer.echo(
            f"{shape.table}.{shape.token} holds {_counted(sum(rows.forms.values()))}"
        )
        for form in forms:
            typer.echo(f"  {form.rows:>12}  {form.name}: {_about(form)}")
    return rows


def _about(form: Form) -> str:
    if form.name != OTHER and form.name != MARKED:
        return words_of(form.name)
    lengths = f"{form.shortest} to {form.longest}"
    if form.shortest == form.longest:
        lengths = str(form.shortest)
    return f"{words_of(form.name)}; {lengths} characters, such as {form.sample}"


def _refuse(shape: TableShape, rows: Rows, asked: Asked) -> None:
    """Raise where nobody said which rows hold tokens."""
    if not asked.forms:
        found = ", ".join(name for name in rows.forms if name != OURS)
        raise ConfigError(
            f"which rows of {shape.table} hold tokens? {_HOW} Then name their form with"
            f" --form: {found}"
        )
    if not any(rows.forms.get(form) for form in asked.forms):
        raise ConfigError(f"no row of {shape.table} has this form: nothing was changed")


async def _hash(connection: Connection, hashing: TokenMigration, size: int) -> None:
    moved, left = monotonic(), await hashing.count(connection)
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


def _conclude(shape: TableShape, rows: Rows, asked: Asked) -> None:
    if not rows.forms:
        typer.echo("there is nothing to hash")
        return
    if not rows.unhashed:
        typer.echo('every row is hashed: set at_rest="prefixed" in the TableShape')
        return
    named = sum(rows.forms.get(form, 0) for form in asked.forms)
    if asked.apply:
        if named:
            typer.echo(
                f"{_counted(named)} could not be hashed: their digests are in other rows,"
                " or somebody writes new ones"
            )
        if rows.unhashed > named:
            others = Rows(
                forms={n: r for n, r in rows.forms.items() if n not in asked.forms}
            )
            typer.echo(f"rows of other forms are left as they were: {others}")
        raise typer.Exit(1)
    if asked.verify:
        typer.echo(f"{_counted(rows.unhashed)} not hashed")
        raise typer.Exit(1)
    if named:
        typer.echo(f"nothing was changed: --apply would hash {_counted(named)}")
        return
    typer.echo(
        f"nothing was changed. {_HOW} To hash the rows of one form: --form FORM --apply"
    )


def _counted(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"
