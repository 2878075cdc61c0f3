"""What the parts of one engine share, and the ids of its new sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ulid import ULID

from handstamp.config import Policy
from handstamp.core.tokens import Tokens
from handstamp.engine.activity import ActivityBuffer
from handstamp.engine.bindings import Bindings
from handstamp.engine.cache import Cache, NegativeCache
from handstamp.engine.clocks import Clock, DatabaseClock
from handstamp.engine.connections import Connections
from handstamp.engine.dispatch import EventDispatcher
from handstamp.errors import ConfigError
from handstamp.stores.base import Capabilities, CreatingStore, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The store, the policy, the cache and the clock of one engine in one process."""

    store: Store
    tokens: Tokens
    policy: Policy
    clock: Clock
    database_clock: DatabaseClock
    cache: Cache
    dispatcher: EventDispatcher
    negative_cache: NegativeCache = field(default_factory=NegativeCache)
    activity: ActivityBuffer = field(default_factory=ActivityBuffer)
    bindings: Bindings = field(default_factory=Bindings)
    connections: Connections = field(default_factory=Connections)

    def reset_after_fork(self) -> None:
        """In a forked child: forget everything; the table has it."""
        self.cache.reset_after_fork()
        self.negative_cache.reset_after_fork()
        self.activity.reset_after_fork()
        self.bindings.reset_after_fork()
        self.connections.reset_after_fork()


async def new_id(store: CreatingStore, make: Callable[[], str], able: Capabilities) -> str:
    """Returns an id for a new row, in the form of its column; from ``make`` if the table
    makes none.

    Raises :class:`ConfigError` for an id that the column does not take.
    """
    session_id = await store.new_id(make)
    if session_id is None:
        raise ConfigError(
            "the id made for a new session is no value of its column, or has more than "
            f"{able.longest_id} characters: change the default of the column, or new_id="
        )
    return session_id


def make_id(kind: str, entropy: Callable[[int], bytes]) -> str:
    """A ULID, or a random UUID of ``entropy``."""
    if kind == "ulid":
        return str(ULID())
    raw = bytearray(entropy(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80  # RFC 9562, section 5.4
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
