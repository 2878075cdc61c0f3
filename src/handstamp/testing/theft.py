"""A thief: a copy of a browser's two cookies, used when their owner has moved on.

What happens next is the engine's to say: a refresh token that comes a second time, after
its successor was seen and grace is over, proves that two parties hold one session, and it
is revoked. The victim has to come back twice for that: once to be refreshed, and once with
the new cookies, for until then the first answer may simply have been lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from handstamp.config import Cookies
from handstamp.core.records import Client
from handstamp.engine.answers import Issued
from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.testing.crossing import across, cross
from handstamp.testing.doors import find_door
from handstamp.testing.jars import jar_of, put_tokens

THIEF = Client(address="203.0.113.66", user_agent="Thief", user_agent_hash="f" * 64)
"""Who replays, as an event will say. The address is one of those kept for examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen:
    """The cookies of :func:`steal`, as the thief has them: they never change."""

    session_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    sessions: Sessions = field(repr=False)
    cookies: Cookies

    def replay(self) -> Issued | None:
        """Present the refresh token, now; None if it was refused, as it should be.

        What the victim did until now is written down first, so that the table knows of
        it. Raises :class:`SessionsUnavailable`.
        """
        return cross(self.sessions, partial(_replay, self))

    async def areplay(self) -> Issued | None:
        """The same, for a test with await."""
        return await across(self.sessions, partial(_replay, self))

    def into(self, client: object) -> None:
        """Put both cookies into another client's jar, the thief's browser."""
        put_tokens(client, self.session_token, self.refresh_token, self.cookies)


def steal(
    client: object, *, sessions: Sessions | None = None, cookies: Cookies | None = None
) -> Stolen:
    """Copy both cookies out of a test client's jar, and leave them there.

    ``sessions`` and ``cookies`` as for :func:`login_as`. Raises :class:`ConfigError`
    where the client holds none: nobody is signed in.
    """
    if sessions is None or cookies is None:
        door = find_door(client)
        sessions, cookies = sessions or door.sessions, cookies or door.cookies
    jar = jar_of(client)
    session, refresh = jar.get(cookies.session_name), jar.get(cookies.refresh_name)
    if not session or not refresh:
        raise ConfigError("this client holds no session to steal: sign it in first")
    return Stolen(
        session_token=session, refresh_token=refresh, sessions=sessions, cookies=cookies
    )


async def _replay(stolen: Stolen) -> Issued | None:
    await stolen.sessions.flush()
    return await stolen.sessions.refresh(stolen.refresh_token, client=THIEF)
