"""The id of a session to be: the table's, or one made here that its column takes."""

from __future__ import annotations

from collections.abc import Callable

from ulid import ULID

from handstamp.errors import ConfigError
from handstamp.stores.base import Capabilities, CreatingStore


async def new_id(store: CreatingStore, make: Callable[[], str], able: Capabilities) -> str:
    """An id for a new row, in the form of its column; from ``make`` where the table gives
    none.

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
