"""An engine without a database, for fast tests."""

from __future__ import annotations

from typing import Any

from handstamp.engine.sessions import Sessions
from handstamp.stores.memory import MemoryStore
from handstamp.testing.clock import FrozenClock

SECRET = "a secret of the tests and of nothing else"  # noqa: S105


def memory_sessions(*, clock: FrozenClock | None = None, **options: Any) -> Sessions:
    """A :class:`Sessions` on a :class:`MemoryStore`: the whole engine and no I/O.

    Every user id exists and is active there; ``sessions.store.users`` says otherwise. With
    ``clock`` both the engine and the store go by it. ``options`` are those of
    :class:`Sessions`; the secret is one for tests unless you give one.
    """
    if not {"secret", "secrets"} & set(options):
        options["secret"] = SECRET
    if clock is None:
        return Sessions(MemoryStore(), **options)
    return Sessions(MemoryStore(clock.now), clock=clock, **options)
