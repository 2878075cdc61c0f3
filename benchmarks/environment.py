"""The versions and the number of cores that a run depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import asyncpg

from benchmarks.report import Row

if TYPE_CHECKING:
    from benchmarks.database import Pool


def environment(postgresql: str | None = None) -> Row:
    """The versions; ``postgresql`` is None without a server."""
    return {
        "Python": platform.python_version(),
        "PostgreSQL": postgresql or "not used",
        "asyncpg": asyncpg.__version__,
        "Starlette": version("starlette"),
        "cores": os.cpu_count() or 0,
    }


async def server_version(pool: Pool) -> str:
    """The version of the server behind ``pool``."""
    return str(await pool.fetchval("show server_version"))
