"""`handstamp init`: make the tables, or what is missing of them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import asyncpg
import typer
from rich.console import Console
from rich.text import Text

from handstamp.cli._shared import complain, connected
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS
from handstamp.stores.install import PRESETS, Outcome, install, script
from handstamp.supabase.schema import install_supabase_trigger, supabase_trigger_script

_SUPABASE = "supabase"
_STYLES = {"created": "green", "found": "dim", "skipped": "yellow"}


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
            help="What the tables look like: ulid or uuid; or supabase, with --trigger."
        ),
    ] = "ulid",
    trigger: Annotated[
        bool,
        typer.Option(
            "--trigger",
            help="Also make every writer notify, so that a session ended by anyone, "
            "in any way, is refused everywhere within milliseconds.",
        ),
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the SQL; needs no database.")
    ] = False,
) -> None:
    """Create the tables with their indexes and triggers.

    All that is missing is created in one transaction. What is there already is
    left as it is.
    """
    if shape not in (*PRESETS, _SUPABASE):
        raise typer.BadParameter(f"there is only: {', '.join((*PRESETS, _SUPABASE))}")
    if only_print:
        if shape != _SUPABASE:
            typer.echo(script(shape, trigger=trigger), nl=False)
        elif trigger:
            typer.echo(supabase_trigger_script(), nl=False)
        return
    if not dsn:
        raise complain("which database? give --dsn or set DATABASE_URL", status=2)
    _show(asyncio.run(_install(dsn, shape, trigger)))


async def _install(dsn: str, shape: str, trigger: bool) -> list[Outcome]:
    async with connected(dsn) as connection:
        try:
            if shape != _SUPABASE:
                return await install(connection, shape, trigger=trigger)
            return await install_supabase_trigger(connection) if trigger else []
        except asyncpg.InsufficientPrivilegeError as error:
            hint = "give the address of a role that may create tables and triggers there"
            raise complain(f"nothing was changed: {error}; {hint}", status=1) from None
        except ConfigError as error:
            raise complain(f"nothing was changed: {error}", status=1) from None
        except FAULTS as error:
            raise complain(f"nothing was changed: {error}", status=1) from None


def _show(outcomes: list[Outcome]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not outcomes:
        console.print(
            "nothing to make: these tables are another server's own;"
            " --trigger adds handstamp's trigger to them"
        )
    for outcome in outcomes:
        state = Text(f"{outcome.state:<7}", style=_STYLES[outcome.state])
        console.print(state + Text(f" {outcome.statement}{_remark(outcome)}"))
    if any(outcome.state == "skipped" for outcome in outcomes):
        console.print(
            "a table there has other columns: handstamp doctor says which shape fits it"
        )


def _remark(outcome: Outcome) -> str:
    if outcome.state == "found":
        return ", left as it is"
    return f": {outcome.reason}" if outcome.reason else ""
