"""The forms of the texts in a column of tokens, as far as a look at them tells.

Rule 1. handstamp's own form is certain: ``sha256:`` and 64 digits of hex, in small letters.
Rule 2. What could be a digest cannot be told from a token by a look at it: 43 characters of
base64 are a SHA-256 digest or 32 random bytes. Only somebody who knows the application can
say, so every such form is ambiguous.
Rule 3. No text leaves the database: a form is a name, a number of rows and their lengths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handstamp.stores.connection import Connection
from handstamp.stores.shapes import PREFIX, quoted

OURS = "prefixed"
"""``sha256:`` and the digest, as handstamp writes it."""
SHA256 = "hex-64"
"""What ``at_rest="digest"`` looks for."""
MARKED = "marked"
OTHER = "other"
"""Whatever could be no digest that is known here."""

_ALGORITHMS: Mapping[int, str] = {
    16: "MD5",
    20: "SHA-1",
    28: "SHA-224",
    32: "SHA-256",
    48: "SHA-384",
    64: "SHA-512",
}
"""By the bytes of their digests."""
_ENCODINGS: Mapping[str, Mapping[int, int]] = {
    "hex": {2 * size: size for size in _ALGORITHMS},
    "base32": {-(-8 * size // 5): size for size in _ALGORITHMS if size > 16},
    "base64": {-(-4 * size // 3): size for size in _ALGORITHMS},
}
"""Characters without padding, and the bytes that they are."""
_CAPITALS = "-capitals"
_WORDS: Mapping[str, str] = {
    OURS: f"{PREFIX} and a digest, as handstamp stores it",
    MARKED: "says that it is a digest: $…$, sha512:…, {SSHA}…, or bytes such as \\x…",
    OTHER: "no form of a digest that is known here",
}
_MARKS = (
    "^[$][a-z0-9_,=-]+[$]"
    "|^[a-z0-9_-]+[$].*[$]"
    "|^[{][a-z0-9_/-]+[}]"
    "|^(s?md[245]|s?sha[0-9_/-]*|hmac[a-z0-9_/-]*|blake[23][a-z0-9-]*|ripemd[0-9-]*"
    "|whirlpool|keccak[0-9-]*|argon2[a-z]*|s?crypt|bcrypt|pbkdf2[a-z0-9_/-]*|hash|digest)"
    "[:=.|/$-]"
    "|^0x[0-9a-f]+$"
    "|^([0-9a-f][0-9a-f]:)+[0-9a-f][0-9a-f]$"
)
_SIGNS = "[$:{=.|/-]|^0[xX]"
"""Every mark has one of these."""
_BASE64 = "^[A-Za-z0-9+/_-]+=*$"
_SHOWN = 100
"""Characters of a sample."""
_NAMES = re.compile(r"(hex|base32|base64)-([0-9]+)(-capitals)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The texts of one form. ``sample`` is one of them with an x for every letter, digit
    and sign of base64; ``x(40)`` are forty of them."""

    name: str
    rows: int
    shortest: int
    longest: int
    sample: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How many rows hold a text of which form. ``about`` says that these are estimates."""

    forms: Mapping[str, int] = field(default_factory=dict)
    about: bool = False

    @property
    def ours(self) -> int:
        """Rows that hold a digest as handstamp writes it."""
        return self.forms.get(OURS, 0)

    @property
    def ambiguous(self) -> Mapping[str, int]:
        """Rows that may hold a digest, by form."""
        return {name: n for name, n in self.forms.items() if is_ambiguous(name) and n}

    @property
    def unhashed(self) -> int:
        """Rows in any form but ours."""
        return sum(self.forms.values()) - self.ours

    def __str__(self) -> str:
        found = sorted(self.forms.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{n} {name}" for name, n in found if name != OURS and n)


def is_ambiguous(form: str) -> bool:
    """Whether texts of this form may be digests."""
    return form not in (OURS, OTHER)


def is_form(name: str) -> bool:
    """Whether there is a form of this name."""
    found = _NAMES.fullmatch(name)
    if found is None:
        return name in _WORDS
    encoding, length, capitals = found.groups()
    return int(length) in _ENCODINGS[encoding] and (not capitals or encoding == "hex")


def words_of(form: str) -> str:
    """What texts of this form may be, for people."""
    found = _NAMES.fullmatch(form)
    if found is None:
        return _WORDS[form]
    encoding, length, capitals = found.groups()
    size = _ENCODINGS[encoding][int(length)]
    letters = " with capitals" if capitals else ""
    return (
        f"{length} characters of {encoding}{letters}: a digest such as {_ALGORITHMS[size]},"
        f" or a token of {size} random bytes"
    )


def form_of(column: str) -> str:
    """SQL for the name of the form of a text; ``column`` is SQL, too.

    What is cheap is asked first: this is asked of millions of rows.
    """
    text = f"btrim({column}::text collate \"C\", E' \\t\\r\\n')"
    bare = f"rtrim({text}, '=')"
    ours = len(PREFIX) + 64
    return (
        f"coalesce(case when starts_with({text}, '{PREFIX}') and length({text}) = {ours}"
        f" and {text} ~ '^{PREFIX}[0-9a-f]+$' then '{OURS}'"
        f" when length({bare}) in ({_lengths(*_ENCODINGS)}) and {text} ~ '{_BASE64}'"
        f" then {_encoding_of(text, bare)} end,"
        f" case when {text} ~ '{_SIGNS}' and {text} ~* '{_MARKS}'"
        f" or starts_with({text}, E'\\\\x') then '{MARKED}' end, '{OTHER}')"
    )


def _encoding_of(text: str, bare: str) -> str:
    """SQL for the form of a text in letters of base64; NULL where its length is none."""
    return (
        f"case when length({text}) in ({_lengths('hex')}) and {text} ~ '^[0-9A-Fa-f]+$'"
        f" then 'hex-' || length({text})"
        f" || case when {text} ~ '[A-F]' then '{_CAPITALS}' else '' end"
        f" when length({bare}) in ({_lengths('base32')})"
        f" and {bare} ~ '^([A-Z2-7]+|[a-z2-7]+)$' then 'base32-' || length({bare})"
        f" when length({bare}) in ({_lengths('base64')}) then 'base64-' || length({bare})"
        " end"
    )


def _lengths(*encodings: str) -> str:
    lengths = {length for encoding in encodings for length in _ENCODINGS[encoding]}
    return ", ".join(map(str, sorted(lengths)))


def forms_sql(table: str, column: str, sample: str = "") -> str:
    """SQL for the forms in a column: name, rows, shortest and longest length, and a text
    of which nothing is left but its punctuation. Takes names as they stand in a shape;
    ``sample`` follows that of the table."""
    text = f"s.{quoted(column)}"
    mask = f"regexp_replace(left(min(text), {_SHOWN}), '[A-Za-z0-9_+/=-]', 'x', 'g')"
    return (
        "select form, count(*) as rows, min(length(text)) as shortest,"  # noqa: S608
        f" max(length(text)) as longest, regexp_replace({mask}, '[^ -~]', '?', 'g') as mask"
        f' from (select {form_of(text)} as form, {text}::text collate "C" as text'
        f" from {quoted(table)} s{sample} where {text} is not null) f"
        " group by form order by count(*) desc, form"
    )


async def read_forms(
    connection: Connection, table: str, column: str, sample: str = ""
) -> list[Form]:
    """The forms in a column, the most frequent first; see :func:`forms_sql`."""
    rows = await connection.fetch(forms_sql(table, column, sample))
    return [Form(name=row["form"], rows=row["rows"], **_looks(row)) for row in rows]


def _looks(row: Any) -> dict[str, Any]:
    runs = re.sub(r"x{4,}", lambda run: f"x({len(run[0])})", row["mask"])
    cut = "…" if row["longest"] > _SHOWN else ""
    return {"shortest": row["shortest"], "longest": row["longest"], "sample": runs + cut}
