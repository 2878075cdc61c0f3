"""A thief: a copy of a browser's cookies, used when their owner has moved on.

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
from handstamp.engine.speech import Speech
from handstamp.errors import ConfigError
from handstamp.testing.carrying import Carried, carried_by, copy_to
from handstamp.testing.crossing import across, cross
from handstamp.testing.doors import find_speech

THIEF = Client(address="203.0.113.66", user_agent="Thief", user_agent_hash="f" * 64)
"""Who replays, as an event will say. The address is one of those kept for examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen:
    """The cookies of :func:`steal`, as the thief has them: they never change."""

    carried: Carried = field(repr=False)
    sessions: Sessions = field(repr=False)
    speech: Speech = field(repr=False)

    @property
    def session_token(self) -> str:
        """What the thief could show as a bearer token."""
        return self.carried.session_token

    @property
    def refresh_token(self) -> str | None:
        """What :meth:`replay` presents; None where the table has none."""
        return self.carried.refresh_token

    def replay(self) -> Issued | None:
        """Present the refresh token, now; None if it was refused, as it should be.

        What the victim did until now is written down first, so that the table knows of
        it. Raises :class:`SessionsUnavailable`, and :class:`ConfigError` where there is
        no refresh token.
        """
        return cross(self.sessions, partial(_replay, self))

    async def areplay(self) -> Issued | None:
        """The same, for a test with await."""
        return await across(self.sessions, partial(_replay, self))

    def into(self, client: object) -> None:
        """Put the cookies into another client's jar, the thief's browser."""
        copy_to(client, self.carried, self.speech)


def steal(
    client: object, *, sessions: Sessions | None = None, cookies: Cookies | None = None
) -> Stolen:
    """Copy the session's cookies out of a test client's jar, and leave them there.

    ``sessions`` and ``cookies`` as for :func:`login_as`. Raises :class:`ConfigError`
    where the client holds none: nobody is signed in.
    """
    sessions, speech = find_speech(client, sessions, cookies)
    carried = carried_by(client, speech)
    if carried is None:
        raise ConfigError("this client holds no session to steal: sign it in first")
    return Stolen(carried=carried, sessions=sessions, speech=speech)


async def _replay(stolen: Stolen) -> Issued | None:
    if stolen.refresh_token is None:
        raise ConfigError(
            "there is no refresh token to replay in these cookies: use the copy as it is, "
            "with into(client)"
        )
    await stolen.sessions.flush()
    return await stolen.sessions.refresh(stolen.refresh_token, client=THIEF)
