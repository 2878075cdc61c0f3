"""Pruning: rows that died long enough ago leave the table, a small batch at a time.

Dead is what the lifetime rules call invalid for good, and nothing else: a session whose
token has expired but whose refresh token stands is alive, however long its owner is away.
"""

from __future__ import annotations

from handstamp.config import Policy
from handstamp.stores.base import Store

BATCH = 500


async def prune(store: Store, policy: Policy, *, batch: int = BATCH) -> int:
    """Delete every row dead for longer than ``policy.retention``; how many there were.

    Each batch is a transaction of its own and skips rows that others hold, so logins and
    flushes never wait for it. Raises :class:`SessionsUnavailable`.
    """
    total = 0
    while True:
        deleted = await store.prune(policy, batch=batch)
        total += deleted
        if deleted < batch:
            return total
