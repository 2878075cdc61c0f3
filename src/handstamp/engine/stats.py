"""Figures of one process, for metrics and health pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from handstamp.engine.bus import Hearing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of this process since it started; ``events`` counts by action, ``notices``
    what was heard on the channel, and ``unknown_notices`` what no handstamp sent there.
    ``cached`` counts what may be served without a question."""

    cached: int
    hits: int
    misses: int
    queries: int
    pending_touches: int
    written_touches: int
    dropped_touches: int
    flushes: int
    open_connections: int
    bus: Hearing
    notices: int
    unknown_notices: int
    foreign_writers_heard: bool
    events: Mapping[str, int]
