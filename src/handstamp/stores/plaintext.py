"""A column with plaintext tokens: what is in it, and how digests replace the tokens.

A row is found by either form of its token, so replacing a token signs no user out. What is
a digest already is never changed, so a run that was killed is simply started again. Tokens
never leave the database, unless a client has sent them.

The forms of the texts in a column (:func:`read_forms`):

1. Only handstamp's own form is certain: ``sha256:`` and 64 hexadecimal digits in lower
   case.
2. Any other text that could be a digest could also be a token: 43 characters of base64 are
   a SHA-256 digest or 32 random bytes. Only a person who knows the application can say
   which. So every such form is ambiguous.
3. Nothing is read but the name of each form, a number of rows, lengths and a masked sample.

The migration of a whole table (:class:`TokenMigration`):

4. A batch is one short transaction over rows in the order of their ids. It waits for no
   lock: locked rows are skipped, and come in the next pass.
5. Only texts of the named forms are hashed. A digest that is hashed again is lost, and with
   it the session.

The replacement at first use (:class:`TokenUpgrader`):

6. It runs beside the request that sent the token. If it fails, the next use tries again.
   At most ``MAX_UPGRADES`` run at the same time, so a locked table holds up a bounded
   number of tasks and connections.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from handstamp.errors import ConfigError, SessionsUnavailable
from handstamp.stores.connection import Connection, Database
from handstamp.stores.postgres import digest_of
from handstamp.stores.resolve import Table
from handstamp.stores.shapes import PREFIX, TableShape, quoted
from handstamp.stores.statements import Statements

MAX_UPGRADES = 4
PAUSE = 0.1
"""Seconds before the next pass of a migration, if the last one found only locked rows."""
_DIGEST = 64

OURS = "prefixed"
"""``sha256:`` and the digest, as handstamp writes it."""
SHA256 = "hex-64"
"""What a column holds with ``at_rest="digest"``."""
MARKED = "marked"
"""A text that says itself that it is a digest."""
OTHER = "other"
"""A text that is no form of a digest that is known here."""

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
"""Characters without padding, and the bytes that they encode."""
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
"""Every mark contains one of these."""
_BASE64 = "^[A-Za-z0-9+/_-]+=*$"
_SAMPLE_LENGTH = 100
"""Characters of a sample."""
_NAMES = re.compile(r"(hex|base32|base64)-([0-9]+)(-capitals)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The texts of one form. ``sample`` is one of them, with an x for every letter, digit
    and sign of base64. ``x(40)`` is forty times x."""

    name: str
    rows: int
    shortest: int
    longest: int
    sample: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How many rows hold a text of which form. With ``about`` these are estimates."""

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

    Cheap tests come first: this runs on millions of rows.
    """
    text = f"btrim({column}::text collate \"C\", E' \\t\\r\\n')"
    bare = f"rtrim({text}, '=')"
    ours = len(PREFIX) + _DIGEST
    encoding = (
        f"case when length({text}) in ({_lengths('hex')}) and {text} ~ '^[0-9A-Fa-f]+$'"
        f" then 'hex-' || length({text})"
        f" || case when {text} ~ '[A-F]' then '{_CAPITALS}' else '' end"
        f" when length({bare}) in ({_lengths('base32')})"
        f" and {bare} ~ '^([A-Z2-7]+|[a-z2-7]+)$' then 'base32-' || length({bare})"
        f" when length({bare}) in ({_lengths('base64')}) then 'base64-' || length({bare})"
        " end"
    )
    return (
        f"coalesce(case when starts_with({text}, '{PREFIX}') and length({text}) = {ours}"
        f" and {text} ~ '^{PREFIX}[0-9a-f]+$' then '{OURS}'"
        f" when length({bare}) in ({_lengths(*_ENCODINGS)}) and {text} ~ '{_BASE64}'"
        f" then {encoding} end,"
        f" case when {text} ~ '{_SIGNS}' and {text} ~* '{_MARKS}'"
        f" or starts_with({text}, E'\\\\x') then '{MARKED}' end, '{OTHER}')"
    )


def _lengths(*encodings: str) -> str:
    lengths = {length for encoding in encodings for length in _ENCODINGS[encoding]}
    return ", ".join(map(str, sorted(lengths)))


def forms_sql(table: str, column: str, sample: str = "") -> str:
    """SQL for the forms in a column: name, rows, shortest and longest length, and a text
    with only its punctuation left. The names are those of a shape; ``sample`` is a
    TABLESAMPLE clause."""
    text = f"s.{quoted(column)}"
    mask = (
        f"regexp_replace(left(min(text), {_SAMPLE_LENGTH}), '[A-Za-z0-9_+/=-]', 'x', 'g')"
    )
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
    return [
        Form(
            name=row["form"],
            rows=row["rows"],
            shortest=row["shortest"],
            longest=row["longest"],
            sample=re.sub(r"x{4,}", lambda run: f"x({len(run[0])})", row["mask"])
            + ("…" if row["longest"] > _SAMPLE_LENGTH else ""),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one batch did: the rows that now hold a digest, and the rows that cannot,
    because another row has that digest already."""

    hashed: int
    clashing: int = 0


class TokenMigration:
    """The migration of one table, for texts of the named forms.

    Raises :class:`ConfigError` for a table that cannot hold digests.
    """

    def __init__(self, shape: TableShape, table: Table, forms: Collection[str]) -> None:
        _check(shape, table)
        self._plain = _is_plain(shape, forms)
        name, id = quoted(shape.table), quoted(shape.id)
        self._count = f"select count(*) from {name} s where {self._plain}"  # noqa: S608
        self._first = self._statement(shape, table, "true", size="$1")
        beyond = f"s.{id} > $1::text::{_cast(table, shape.id)}"
        self._next = self._statement(shape, table, beyond, size="$2")

    async def count(self, connection: Connection) -> int:
        """How many rows hold a plaintext token: a text of one of the forms."""
        return int(await connection.fetchval(self._count))

    async def run(self, connection: Connection, *, size: int) -> AsyncIterator[Batch]:
        """Hash until no row is left that can be hashed, ``size`` rows in a batch.

        Yields after each batch, also after an empty one, so that a caller can stop.
        """
        last: str | None = None
        clashing = hashed = 0
        while True:
            async with connection.transaction():
                if last is None:
                    row: Any = await connection.fetchrow(self._first, size)
                else:
                    row = await connection.fetchrow(self._next, last, size)
            last = row["last"]
            clashing += row["seen"] - row["hashed"]
            hashed += row["hashed"]
            yield Batch(hashed=row["hashed"], clashing=clashing)
            if last is not None:
                continue
            if await self.count(connection) <= clashing:
                return
            if not hashed:
                await asyncio.sleep(PAUSE)
            clashing = hashed = 0

    def _statement(self, shape: TableShape, table: Table, where: str, *, size: str) -> str:
        """One batch. The digest is made of the row at the moment of the write, and only if
        it still holds a plaintext then: a row that was hashed meanwhile stays as it is."""
        name, id, token = map(quoted, (shape.table, shape.id, shape.token))
        digest = f"'{PREFIX}' || encode(sha256(convert_to(s.{token}::text, 'UTF8')), 'hex')"
        return (
            f"with batch as (select s.{id} as id from {name} s"  # noqa: S608
            f" where {where} and {self._plain}"
            f" order by s.{id} limit {size} for update skip locked),"
            f" done as (update {name} s set {token} = {digest} from batch"
            f" where s.{id} = batch.id and {self._plain}"
            f" and not exists (select from {name} o"
            f" where o.{token} = ({digest})::{_cast(table, shape.token)})"
            f" returning 1)"
            " select (select count(*) from batch) as seen,"
            " (select count(*) from done) as hashed,"
            " (select id::text from batch order by id desc limit 1) as last"
        )


def _is_plain(shape: TableShape, forms: Collection[str]) -> str:
    """The condition that a row holds a text of one of the forms. A text with the prefix of
    our digests does not count, whatever follows: it is valid for no session."""
    text = f"s.{quoted(shape.token)}"
    named = ", ".join(f"'{form}'" for form in sorted(forms) if is_form(form)) or "null"
    begins = f"starts_with({text}::text collate \"C\", '{PREFIX}')"
    return f"not {begins} and {form_of(text)} in ({named})"


def _cast(table: Table, column: str) -> str:
    type = table.columns[column].type
    return "text" if type == "varchar" else type


def check_columns(shape: TableShape, table: Table) -> None:
    """Raise :class:`ConfigError` for a table without the columns of ids and tokens."""
    for column in (shape.id, shape.token):
        if column not in table.columns:
            raise ConfigError(f"{shape.table} has no column {column}")


def _check(shape: TableShape, table: Table) -> None:
    check_columns(shape, table)
    key, holder = shape.id, shape.token
    if key == holder:
        raise ConfigError(
            f"{shape.table}.{key} is both id and token: hashing it would give every "
            "session another id"
        )
    token = table.columns[shape.token]
    place = f"{shape.table}.{token.name}"
    if token.type not in ("text", "varchar", "bpchar"):
        raise ConfigError(f"{place} is of type {token.type}, and digests are text")
    needed = len(PREFIX) + _DIGEST
    if token.length is not None and token.length < needed:
        raise ConfigError(
            f"{place} takes {token.length} characters and a digest needs {needed}. Fix it "
            f"with: alter table {quoted(shape.table)} alter column {quoted(token.name)} "
            "type varchar(255);"
        )


class TokenUpgrader:
    """The tokens of one table that are being replaced at their first use."""

    def __init__(
        self, database: Database, statements: Callable[[], Awaitable[Statements]]
    ) -> None:
        self._database = database
        self._statements = statements
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, stored: Iterable[str]) -> None:
        """Replace those of these column values that are tokens, in a task."""
        plain = [token for token in stored if not token.startswith(PREFIX)]
        if not plain:
            return
        loop = asyncio.get_running_loop()
        if len(self._tasks) >= MAX_UPGRADES:  # tasks of a closed loop never end
            self._tasks -= {task for task in self._tasks if task.get_loop() is not loop}
        if len(self._tasks) < MAX_UPGRADES:
            task = loop.create_task(self._upgrade(plain))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _upgrade(self, plain: list[str]) -> None:
        sql = await self._statements()
        with suppress(SessionsUnavailable):  # for example, in a read-only database
            async with self._database.acquire_write() as connection:
                self._database.queries += 1
                await connection.execute(
                    sql.upgrade, plain, [PREFIX + digest_of(token) for token in plain]
                )

    async def stop(self) -> None:
        """Cancel the tasks of this loop; the remaining tokens stay as they are."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
