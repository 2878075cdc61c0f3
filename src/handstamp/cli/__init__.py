"""The `handstamp` command. Its parts are in the extra `handstamp[cli]`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exits with status 2 when the extra is not installed."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(
            f"handstamp: {error.name} is not installed: pip install 'handstamp[cli]'\n"
        )
        raise SystemExit(2) from None
    from handstamp.cli.app import app

    app()
