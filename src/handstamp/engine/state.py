"""What the parts of one engine share."""

from __future__ import annotations

from dataclasses import dataclass, field

from handstamp.config import Policy
from handstamp.core.tokens import Tokens
from handstamp.engine.activity import ActivityBuffer
from handstamp.engine.bindings import Bindings
from handstamp.engine.cache import Cache, NegativeCache
from handstamp.engine.clocks import Clock, DatabaseClock
from handstamp.engine.connections import Connections
from handstamp.engine.dispatch import EventDispatcher
from handstamp.stores.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One store, one policy, one cache, one clock: of one process."""

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
        """Forget what was learned, in a forked child; what stands in the table is there."""
        self.cache.reset_after_fork()
        self.negative_cache.reset_after_fork()
        self.activity.reset_after_fork()
        self.bindings.reset_after_fork()
        self.connections.reset_after_fork()
