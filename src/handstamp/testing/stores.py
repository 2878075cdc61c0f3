"""An engine without a database, for fast tests."""

from __future__ import annotations

from typing import Any

from handstamp.engine.sessions import Sessions
from handstamp.errors import ConfigError
from handstamp.stores.memory import MemoryStore
from handstamp.testing.clock import FrozenClock

_OF_SUPABASE = {"url", "cookie", "jwt_secret", "jwt_keys", "rules"}
SECRET = "a secret of the tests and of nothing else"  # noqa: S105


def memory_sessions(*, clock: FrozenClock | None = None, **options: Any) -> Sessions:
    """A :class:`Sessions` on a :class:`MemoryStore`: the whole engine and no I/O.

    Every user id exists and is active there; ``sessions.store.users`` says otherwise. With
    ``clock`` both the engine and the store go by it. ``options`` are those of
    :class:`Sessions`; the secret is one for tests unless you give one. Raises
    :class:`ConfigError` for those of :class:`SupabaseSessions`, whose tables nothing in
    memory stands in for.
    """
    if theirs := sorted(_OF_SUPABASE & set(options)):
        raise ConfigError(
            f"{', '.join(theirs)}: that is for SupabaseSessions, which needs its tables: "
            "make one on the address of a test database with the schema auth"
        )
    if not {"secret", "secrets"} & set(options):
        options["secret"] = SECRET
    if clock is None:
        return Sessions(MemoryStore(), **options)
    return Sessions(MemoryStore(clock.now), clock=clock, **options)
