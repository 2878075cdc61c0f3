"""What the parts of one engine share."""

from __future__ import annotations

from dataclasses import dataclass, field

from handstamp.clock import Clock
from handstamp.config import Policy
from handstamp.core.tokens import Tokens
from handstamp.engine.activity import Activity
from handstamp.engine.bindings import Bindings
from handstamp.engine.cache import Cache
from handstamp.engine.connections import Connections
from handstamp.engine.database_clock import DatabaseClock
from handstamp.engine.reporting import Reports
from handstamp.engine.strangers import Strangers
from handstamp.stores.base import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One store, one policy, one cache, one clock: of one process."""

    store: Store
    tokens: Tokens
    policy: Policy
    clock: Clock
    database_clock: DatabaseClock
    cache: Cache
    reports: Reports
    strangers: Strangers = field(default_factory=Strangers)
    activity: Activity = field(default_factory=Activity)
    bindings: Bindings = field(default_factory=Bindings)
    connections: Connections = field(default_factory=Connections)

    def start_over(self) -> None:
        """Forget what was learned, in a forked child; what stands in the table is there."""
        self.cache.start_over()
        self.strangers.start_over()
        self.activity.start_over()
        self.bindings.start_over()
        self.connections.start_over()
