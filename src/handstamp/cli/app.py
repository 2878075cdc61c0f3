"""The `handstamp` command, put together from its subcommands."""

from __future__ import annotations

import typer

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


@app.callback()
def _root() -> None:
    """Keep `init` a subcommand: Typer would drop the name of a single one."""
