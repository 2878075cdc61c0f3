"""Ids: what a column of each type can hold, and how a token carries the id of a session.

A value has one spelling here, which is the database's: a uuid in lower case with its
hyphens, a number without needless zeros. Ids are compared in that spelling only.

A column of ids may hold any text. An id of at most 64 letters, digits, hyphens and
underscores stands in a token as it is; any other one as ``~`` and the base64url of its
UTF-8, without padding. No id of the first kind has a ``~``, so no two ids have one text,
and every id has exactly one: whatever :func:`encode` would not have made is refused.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

LONGEST_ID = 255
"""Characters in an id of a session or of a user."""
LONGEST_ENCODED = 1 + -(-LONGEST_ID * 4 * 4 // 3)
"""Characters of the longest text that :func:`encode` makes of an id: a character has at
most four bytes, and three bytes are four characters of base64."""

_UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_BITS = {"int2": 15, "int4": 31, "int8": 63}
_PLAIN = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MARK = "~"
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


def normalize(type: str, text: str) -> str | None:
    """``text`` as a column of this type of PostgreSQL spells it; None if the column could
    not hold it, or not as an id."""
    if type == "uuid":
        return normalize_uuid(text)
    if type in _BITS:
        return _normalize_integer(text, most=1 << _BITS[type])
    # Blanks at the end of a character(n) are no part of the value.
    return normalize_text(text.rstrip(" ") if type == "bpchar" else text)


def normalize_text(text: str) -> str | None:
    """``text`` itself, or None if no column of texts could hold it as an id.

    PostgreSQL takes no NUL and no half of a surrogate pair in any text.
    """
    return None if len(text) > LONGEST_ID or _UNSTORABLE.search(text) else text


def normalize_uuid(text: str) -> str | None:
    """A uuid in lower case with its hyphens, or None for what is no uuid.

    Capitals are allowed, and so are 32 digits without any hyphen.
    """
    if not text.isascii() or not _UUID.fullmatch(text.lower()):
        return None
    digits = text.lower().replace("-", "")
    cuts = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "-".join(digits[start:end] for start, end in cuts)


def _normalize_integer(text: str, *, most: int) -> str | None:
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return str(number) if -most <= number < most else None


def encode(session_id: str) -> str:
    """The text of an id in a token.

    Raises ``ValueError`` for what is no id, without quoting it.
    """
    if _PLAIN.fullmatch(session_id):
        return session_id
    if normalize_text(session_id) is None:
        raise ValueError("this text cannot be the id of a session")
    return _MARK + urlsafe_b64encode(session_id.encode()).rstrip(b"=").decode()


def decode(text: str) -> str | None:
    """The id of which ``text`` is the one encoding, or None if there is none."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.startswith(_MARK):
        return None
    raw = text[len(_MARK) :]
    try:
        session_id = urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode()
        return session_id if encode(session_id) == text else None
    except ValueError:  # no base64, no UTF-8, or no id
        return None


def ids_of(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """One id, several or none, as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
