"""Whether an index serves every frequent statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg

from handstamp.stores.doctor import examining
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.needs import Sample

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection


async def look_at_indexes(
    connection: Connection, samples: Sequence[Sample]
) -> list[Finding]:
    """The tables that a statement would read whole, each with the index it wants."""
    found, unseen = [], False
    for sample in samples:
        try:
            found += await _look(connection, sample)
        except asyncpg.InsufficientPrivilegeError:
            unseen = True  # said of the grants
    return found or [_none(unseen=unseen)]


async def _look(connection: Connection, sample: Sample) -> list[Finding]:
    found = []
    for table in await examining.read_without_index(connection, sample.sql, sample.values):
        index = sample.indexes.get(table)
        if index is not None and await examining.is_served_when_big(connection, index):
            continue
        text = f"{sample.feature} reads all of {table}, for want of an index"
        mend = "" if index is None else str(index)
        found.append(Finding(Level.WARNING, "indexes", text, mend))
    return found


def _none(*, unseen: bool) -> Finding:
    if not unseen:
        return Finding(Level.OK, "indexes", "every frequent statement uses an index")
    text = "not every frequent statement was looked at: mend the grants first"
    return Finding(Level.NOTICE, "indexes", text)
