"""Make the tables and two users: ``python -m examples.seed``, as often as you like."""

from __future__ import annotations

import asyncio

import asyncpg

from examples import settings
from examples.accounts import hasher
from handstamp.stores.sql.install import install

USERS = {"alice": "wonderland", "bob": "builder"}

_ADD = """
    insert into users (username, password_hash) values ($1, $2)
    on conflict (username) do nothing returning id"""


async def seed() -> None:
    """Create what is missing of the tables, the trigger that makes every writer notify,
    and the users; change nothing else."""
    shape = settings.shape_name()
    connection = await asyncpg.connect(settings.database_url(), timeout=10)
    try:
        for outcome in await install(connection, shape, trigger=True):
            print(f"{outcome.state:<7} {outcome.statement}")
        for username, password in USERS.items():
            added = await connection.fetchval(_ADD, username, hasher.hash(password))
            print(f"{'created' if added else 'found':<7} user {username} / {password}")
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(seed())
