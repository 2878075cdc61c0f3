"""`handstamp init`: create the tables, or what is missing of them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import asyncpg
import typer
from rich.console import Console
from rich.text import Text

from handstamp.cli.app import app, connected, fail, required
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS
from handstamp.stores.install import PRESETS, Outcome, install, script
from handstamp.supabase.schema import install_supabase_trigger, supabase_trigger_script

_SUPABASE = "supabase"
_SHAPES = (*PRESETS, _SUPABASE)
_STYLES = {"created": "green", "found": "dim", "skipped": "yellow"}


@app.command()
def init(
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="DATABASE_URL",
            metavar="URL",
            help="The database: postgresql://user:password@host:port/name",
        ),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="The layout of the tables: ulid or uuid; or supabase, with --trigger."
        ),
    ] = "ulid",
    trigger: Annotated[
        bool,
        typer.Option(
            "--trigger",
            help="Also create the trigger with which every writer notifies: a session that "
            "anything ends is then refused everywhere within milliseconds.",
        ),
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the SQL. Needs no database.")
    ] = False,
) -> None:
    """Create the tables with their indexes and triggers.

    Everything that is missing is created in one transaction. What exists already is not
    changed.
    """
    if shape not in _SHAPES:
        raise typer.BadParameter(f"choose one of: {', '.join(_SHAPES)}")
    if only_print:
        if shape != _SUPABASE:
            typer.echo(script(shape, trigger=trigger), nl=False)
        elif trigger:
            typer.echo(supabase_trigger_script(), nl=False)
        return
    _show(asyncio.run(_install(required(dsn), shape, trigger)))


async def _install(dsn: str, shape: str, trigger: bool) -> list[Outcome]:
    async with connected(dsn) as connection:
        try:
            if shape != _SUPABASE:
                return await install(connection, shape, trigger=trigger)
            return await install_supabase_trigger(connection) if trigger else []
        except asyncpg.InsufficientPrivilegeError as error:
            hint = "give the address of a role that may create tables and triggers there"
            raise fail(f"nothing was changed: {error}; {hint}", status=1) from None
        except (ConfigError, *FAULTS) as error:
            raise fail(f"nothing was changed: {error}", status=1) from None


def _show(outcomes: list[Outcome]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not outcomes:
        console.print(
            "nothing to create: these tables belong to another server;"
            " --trigger adds handstamp's trigger to them"
        )
    for outcome in outcomes:
        state = Text(f"{outcome.state:<7}", style=_STYLES[outcome.state])
        remark = f": {outcome.reason}" if outcome.reason else ""
        if outcome.state == "found":
            remark = ", left as it is"
        console.print(state + Text(f" {outcome.statement}{remark}"))
    if any(outcome.state == "skipped" for outcome in outcomes):
        console.print(
            "a table has other columns: handstamp doctor proposes the shape for it"
        )
