"""Tables and users, by the code of the examples."""

from __future__ import annotations

import asyncio
import io
import sys
from contextlib import redirect_stdout

import asyncpg

from handstamp.cli.connecting import complain, connected
from handstamp.cli.demo.example import load


def seed(url: str, *, quietly: bool) -> None:
    """Make what is missing of the tables and users; say so unless ``quietly``.

    Raises `typer.Exit` after a line that says why it could not.
    """
    with redirect_stdout(io.StringIO() if quietly else sys.stdout):
        asyncio.run(_seed(url))


async def _seed(url: str) -> None:
    async with connected(url):
        pass  # whether it can be reached is told apart from what is wrong inside
    try:
        await load("examples.seed").seed()
    except asyncpg.PostgresError as error:
        raise complain(f"cannot make tables and users: {error}", status=1) from None
