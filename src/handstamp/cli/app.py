"""The `handstamp` command, put together from its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from handstamp import __version__
from handstamp.cli.demo import demo
from handstamp.cli.doctor import doctor
from handstamp.cli.init import init
from handstamp.cli.migrate_tokens import migrate_tokens

app = typer.Typer(
    name="handstamp",
    help="Session middleware for the sessions table you already have.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables would print connection strings.
    pretty_exceptions_show_locals=False,
)
app.command()(demo)
app.command()(doctor)
app.command()(init)
app.command("migrate-tokens")(migrate_tokens)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"handstamp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Say which this is."
        ),
    ] = False,
) -> None:
    """Take what stands before a command."""
