"""The `handstamp` command. It needs the packages of the extra `handstamp[cli]`.

One module is one command. A module registers its command when it is imported, and imports
nothing that the extra does not bring.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line. Exits with status 2 if the extra is not installed."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(
            f"handstamp: {error.name} is not installed: pip install 'handstamp[cli]'\n"
        )
        raise SystemExit(2) from None
    load()()


def load() -> typer.Typer:
    """Return the application with all of its commands."""
    from handstamp.cli import demo, doctor, init, migrate_tokens  # noqa: F401
    from handstamp.cli.app import app

    return app
