"""A process of the races: it connects, writes "ready", reads orders, starts at "go"."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import asyncpg

from handstamp import Sessions
from handstamp.core.cookies import Credentials
from handstamp.core.models import Authenticated, Client

ME = Client(address="198.51.100.1", user_agent="racer")
CONNECTIONS = 10
Outcome = dict[str, Any]


async def main() -> None:
    """Serve orders until the pipe is closed."""
    dsn = os.environ["RACER_DSN"]
    async with Sessions(dsn, secret=os.environ["RACER_SECRET"]) as sessions:
        await asyncio.gather(*(sessions.ping() for _ in range(CONNECTIONS)))
        connection = await asyncpg.connect(dsn)
        say("ready")
        while line := await read_line():
            order = json.loads(line)
            say("set")
            await read_line()
            say(await carry_out(order, sessions, connection))


async def carry_out(
    order: Outcome, sessions: Sessions, connection: asyncpg.Connection
) -> list[Outcome]:
    """Do what was ordered."""
    match order["do"]:
        case "ask":
            asked = (ask(order, sessions) for _ in range(order["times"]))
            return list(await asyncio.gather(*asked))
        case "use":
            outcome = await ask(order, sessions)
            await sessions.flush()
            return [outcome]
        case "revoke":
            return [outcome_of(str(await sessions.revoke(order["id"])))]
        case "disable":
            sql = "update users set is_active = false where id = $1"
            await connection.execute(sql, order["id"])
            return [outcome_of("disabled")]
    raise ValueError(order["do"])


async def ask(order: Outcome, sessions: Sessions) -> Outcome:
    """Make one request with the tokens of the order."""
    credentials = Credentials(
        session=(order["session"].encode(),) if "session" in order else (),
        refresh=(order["refresh"].encode(),),
        sent=True,
    )
    answer = await sessions.authenticate(credentials, ME)
    if not isinstance(answer, Authenticated):
        return outcome_of(repr(answer))
    if answer.issued is None:
        return outcome_of("authenticated")
    pair = (answer.issued.session_token, answer.issued.refresh_token)
    return outcome_of("authenticated", pair)


def outcome_of(answer: str, pair: tuple[str, str] | None = None) -> Outcome:
    """An answer as it goes over the pipe."""
    return {"answer": answer, "pair": pair}


def say(value: object) -> None:
    """Write one line to the parent."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def read_line() -> str:
    """The next line from the parent; empty when the parent has ended."""
    return await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main())
