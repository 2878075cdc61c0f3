"""What the tests of the core start from: one healthy row, and keys to sign with."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from handstamp.core.models import Record
from handstamp.core.tokens import Tokens

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLD_KEY = "an old key of more than thirty-two bytes"
NEW_KEY = "a new key, also of more than thirty-two bytes"
TICK = timedelta(microseconds=1)


def make_record(**changes: Any) -> Record:
    """A row a moment after its login, under the default policy, with changes."""
    fresh = Record(
        id="01JGGZ5Z8V0000000000000000",
        user_id="alice",
        token_digest="a" * 64,
        refresh_digest="b" * 64,
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=15),
        refresh_expires_at=NOW + timedelta(days=30),
        last_activity_at=NOW,
        is_active=True,
        read_at=NOW,
    )
    return replace(fresh, **changes)


def make_tokens(*keys: str) -> Tokens:
    """Tokens under these keys, or under one of them all."""
    return Tokens(keys or [OLD_KEY])
