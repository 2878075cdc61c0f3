"""What the page shows of a process: its figures and its last events.

No token is in an event, and of an address only its network is shown.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, fields
from datetime import timedelta

from handstamp import Sessions
from handstamp.config import Policy
from handstamp.core.records import Client, masked
from handstamp.events import Event

_KEPT = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    number: int
    at: float
    event: Event


class Feed:
    """The last events of one `Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._entries: deque[_Entry] = deque(maxlen=_KEPT)
        self._number = 0
        sessions.on(Event, self._take)

    def _take(self, event: Event) -> None:
        self._number += 1
        entry = _Entry(number=self._number, at=time.monotonic(), event=event)
        self._entries.append(entry)

    def told(self) -> list[dict[str, object]]:
        """The events as JSON knows them, oldest first, with their age in seconds."""
        now = time.monotonic()
        return [
            {
                "number": entry.number,
                "age": round(now - entry.at, 3),
                "action": entry.event.action,
                "alarming": entry.event.alarming,
                **_facts(entry.event),
            }
            for entry in self._entries
        ]


def _facts(event: Event) -> dict[str, object]:
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    return {
        name: masked(value.address) if isinstance(value, Client) else value
        for name, value in values.items()
    }


def figures(sessions: Sessions, requests: int) -> dict[str, object]:
    """The counters of this process, with how many requests the example got."""
    stats = asdict(sessions.stats())
    looked_up = stats["hits"] + stats["misses"]
    hit_rate = stats["hits"] / looked_up if looked_up else None
    return {"requests": requests, "hit_rate": hit_rate, **stats}


def lifetimes(policy: Policy) -> dict[str, float]:
    """Every duration of the policy, in seconds."""
    values = {f.name: getattr(policy, f.name) for f in fields(policy)}
    return {n: v.total_seconds() for n, v in values.items() if isinstance(v, timedelta)}
