"""The application's own part: who its users are and how they prove it.

Nothing here is about sessions. A password is checked in a thread, for argon2 takes its
time and memory on purpose; whoever fails often is locked out of signing in for a while.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)
hasher = PasswordHash.recommended()

FAILURES = 10
LOCKED_FOR = timedelta(minutes=15)
LONGEST = 1024
"""Characters of a password, and more than enough of a username."""

_AT_ONCE = CapacityLimiter(4)  # each check takes 64 MiB
# Compared with when there is no such user, so that the answer takes as long.
_NOBODYS = hasher.hash(secrets.token_urlsafe())

_FIND = """
    select id, password_hash, failed_login_attempts,
        is_active and (locked_until is null or locked_until <= now()) as admissible
    from users where username = $1"""
# A lock that is over starts a new count.
_COUNT = """
    update users set
        failed_login_attempts = case when locked_until is null
            then coalesce(failed_login_attempts, 0) + 1 else 1 end,
        locked_until = case when locked_until is null
            and coalesce(failed_login_attempts, 0) + 1 >= $2 then now() + $3::interval end
    where username = $1 and (locked_until is null or locked_until <= now())"""

# Some tables of sessions have a trigger that does it, others have none.
_FORGET = """
    update users set failed_login_attempts = 0, locked_until = null
    where id = $1 and (locked_until is null or locked_until <= now())"""

_NO_ANSWER = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


class WrongPassword(Exception):
    """These are no username and password of somebody who may sign in now."""


class AccountsUnavailable(Exception):
    """The database gave no answer."""


class Accounts:
    """The table of users, on a small pool of its own, made when it is first needed.

    Under WSGI: ``call(accounts.verify, username, password)``.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._pool: Pool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Accounts:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def _open(self) -> Pool:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # test clients have a loop for every request
            self._loop, self._pool, self._opening = loop, None, asyncio.Lock()
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn, min_size=0, max_size=4, timeout=5, command_timeout=5
                )
            return self._pool

    async def verify(self, username: str, password: str) -> str:
        """The id of the user who knows this password.

        Raises :class:`WrongPassword`, whatever the reason, and
        :class:`AccountsUnavailable`.
        """
        if "\0" in username or max(len(username), len(password)) > LONGEST:
            raise WrongPassword
        async with self._answering() as pool:
            user = await pool.fetchrow(_FIND, username)
        stored = user["password_hash"] if user else _NOBODYS
        right = await to_thread.run_sync(hasher.verify, password, stored, limiter=_AT_ONCE)
        if not right:
            async with self._answering() as pool:
                await pool.execute(_COUNT, username, FAILURES, LOCKED_FOR)
        if not right or user is None or not user["admissible"]:
            raise WrongPassword
        if user["failed_login_attempts"]:
            async with self._answering() as pool:
                await pool.execute(_FORGET, user["id"])
        return str(user["id"])

    async def username(self, user_id: str) -> str | None:
        """What this user is called. Raises :class:`AccountsUnavailable`."""
        async with self._answering() as pool:
            name = await pool.fetchval("select username from users where id = $1", user_id)
        return None if name is None else str(name)

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[Pool]:
        try:
            yield await self._open()
        except _NO_ANSWER as exc:
            # The driver's own text may quote rows: the log gets the kind of error only.
            logger.warning("no answer about accounts: %s", type(exc).__name__)
            raise AccountsUnavailable(type(exc).__name__) from None
