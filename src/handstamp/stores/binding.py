"""Between rows of a table of sessions and values of ours: what is bound, what is read."""

from __future__ import annotations

import hashlib
import re

import asyncpg

from handstamp.core.records import Record
from handstamp.stores.base import Capabilities, Ended
from handstamp.stores.shapes import PREFIX, AtRest

NOWHERE = "0.0.0.0"  # noqa: S104 - no address to bind: it stands for "unknown"
"""What stands in a NOT NULL address column for a client without an address."""
LONGEST_REASON = 100
LONGEST_HASH = 64
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


def record_of(row: asyncpg.Record, at_rest: AtRest, able: Capabilities) -> Record:
    """A row as it was read; the token in it as its digest, however it stands there."""
    values = dict(row)
    values.pop("said", None)
    token = str(values["token_digest"])
    if at_rest != "digest":
        in_clear = not token.startswith(PREFIX)
        token = digest_of(token) if in_clear else token.removeprefix(PREFIX)
    values["token_digest"] = token
    values["address"] = address_of(values["address"])
    return Record(**values, slides=able.sliding, dateless=not able.absolute)


def address_of(value: object) -> str | None:
    """An address as a record has it: one that stands for none is none."""
    text = None if value is None else str(value).partition("/")[0]
    return None if text == NOWHERE else text


def ended_of(row: asyncpg.Record) -> Ended:
    """A row that says which session ended."""
    return Ended(id=str(row["id"]), user_id=str(row["user_id"]))


def digest_of(token: str) -> str:
    """What is stored of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def reason_of(text: str) -> str:
    """A reason, cut to what the documented column takes."""
    return storable(text)[:LONGEST_REASON]


def storable(text: str) -> str:
    """``text`` without what PostgreSQL takes in no text at all: NUL and half a pair."""
    return _UNSTORABLE.sub("?", text)


def bindable(value: object) -> object:
    """``value`` as it can be bound, whatever text a client sent."""
    if isinstance(value, list):
        return [storable(item) for item in value]
    return storable(value) if isinstance(value, str) else value


def count_of(status: str) -> int:
    """How many rows a command tag tells of."""
    return int(status.rpartition(" ")[2])
