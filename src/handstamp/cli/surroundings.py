"""What is around the tables: the server, what lies in between, the clocks, the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

from handstamp.cli.remarks import (
    bound_remarks,
    clock_remarks,
    pooler_remarks,
    server_remarks,
)
from handstamp.stores.doctor import examining
from handstamp.stores.doctor.findings import Finding

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``bound`` is "pushed" or "max_staleness"."""

    bound: str
    findings: Sequence[Finding]


async def look_around(
    connection: Connection, listening: Connection, facts: examining.Facts, *, covered: bool
) -> Surroundings:
    """``covered`` is whether every writer of the tables says what it ends."""
    # A standby refuses both LISTEN and NOTIFY.
    heard = not facts.standby and await examining.is_heard(
        connection, listening, token_hex(8)
    )
    bound = "pushed" if covered and heard else "max_staleness"
    mute = not heard and not facts.standby
    return Surroundings(
        bound,
        [
            *pooler_remarks(examining.is_pooled(connection, facts.pid), mute=mute),
            *server_remarks(facts),
            *clock_remarks(*await examining.clock_difference(connection)),
            *bound_remarks(bound, heard),
        ],
    )
