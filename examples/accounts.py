"""The application's own part: its users and their passwords.

Nothing here is about sessions. A password is checked in a thread, because argon2 takes
time and memory on purpose. After too many failures a user cannot sign in for a while.
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
"""The maximum length of a password and of a username, in characters."""

_AT_ONCE = CapacityLimiter(4)  # each check takes 64 MiB
# The hash for an unknown user, so that the answer takes the same time.
_UNKNOWN_USER = hasher.hash(secrets.token_urlsafe())

_FIND = """
    select id, password_hash, failed_login_attempts,
        is_active and (locked_until is null or locked_until <= now()) as admissible
    from users where username = $1"""
# After a lock a new count starts.
_COUNT = """
    update users set
        failed_login_attempts = case when locked_until is null
            then coalesce(failed_login_attempts, 0) + 1 else 1 end,
        locked_until = case when locked_until is null
            and coalesce(failed_login_attempts, 0) + 1 >= $2 then now() + $3::interval end
    where username = $1 and (locked_until is null or locked_until <= now())"""

# Some tables of sessions have a trigger that does this as well.
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
    """The username and password do not belong to a user who may sign in now."""


class AccountsUnavailable(Exception):
    """The database did not answer."""


class Accounts:
    """The table of users, on a small pool of its own, which is made at the first use.

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
        if self._loop is not loop:  # test clients have an event loop for each request
            self._loop, self._pool, self._opening = loop, None, asyncio.Lock()
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn, min_size=0, max_size=4, timeout=5, command_timeout=5
                )
            return self._pool

    async def verify(self, username: str, password: str) -> str:
        """Returns the id of the user with this password.

        Raises :class:`WrongPassword`, whatever the reason, and
        :class:`AccountsUnavailable`.
        """
        if "\0" in username or max(len(username), len(password)) > LONGEST:
            raise WrongPassword
        async with self._answering() as pool:
            user = await pool.fetchrow(_FIND, username)
        stored = user["password_hash"] if user else _UNKNOWN_USER
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
        """Returns the name of this user, or None. Raises :class:`AccountsUnavailable`."""
        async with self._answering() as pool:
            name = await pool.fetchval("select username from users where id = $1", user_id)
        return None if name is None else str(name)

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[Pool]:
        try:
            yield await self._open()
        except _NO_ANSWER as exc:
            # The driver's text may quote rows, so only the type of the error is logged.
            logger.warning("no answer about accounts: %s", type(exc).__name__)
            raise AccountsUnavailable(type(exc).__name__) from None
