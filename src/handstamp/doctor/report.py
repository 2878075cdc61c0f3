"""What `handstamp doctor` remarks on things it only has to look at.

What is around the tables: the server, what lies in between, the clocks, the bound.

Whether an index serves every frequent statement.

What `handstamp doctor` finds: one function for each thing it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from secrets import token_hex

import asyncpg

from handstamp.doctor.check import (
    BIG,
    TIME_LIMIT,
    Facts,
    Need,
    Sample,
    clock_difference,
    count_rows,
    is_pooled,
    is_served_when_big,
    listen_for,
    may_use_sequence,
    missing_privileges,
    read_facts,
    read_oids,
    read_users,
    read_without_index,
    samples,
    sequence_of,
    trigger_findings,
    wanted,
)
from handstamp.doctor.columns import Finding, Level, Users, columns_of
from handstamp.doctor.infer import (
    NAMES,
    PRESETS,
    Proposal,
    as_python,
    capabilities,
    choose_token,
    differences,
    propose,
)
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Table, read_table
from handstamp.stores.connection import Connection
from handstamp.stores.notify import delivers
from handstamp.stores.notify.sql import triggers_of
from handstamp.stores.resolve import ResolvedTable, refusals, refuse_long_ids, resolve
from handstamp.stores.shapes import AtRest, TableShape, quoted
from handstamp.stores.statements import Statements
from handstamp.stores.token_forms import SHA256, Rows

_TOLERANCE = timedelta(seconds=1)
_FAR = timedelta(minutes=1)


def tokens_remarks(proposal: Proposal, rows: Rows | None) -> Iterator[Finding]:
    """Tokens in clear, by what the rows look like."""
    shape = proposal.shape
    if rows is None:
        text = "the rows were not counted: no right to read them, or no answer in time"
        yield Finding(Level.NOTICE, "tokens", text)
        return
    if not proposal.decided:
        return  # that is said with the proposal
    about = "about " if rows.about else ""
    if shape.at_rest == "digest":
        others = {name: n for name, n in rows.forms.items() if name != SHA256}
        if others:
            text = (
                f"{about}{sum(others.values())} rows of {shape.token} hold something other"
                f" than a SHA-256 digest in small digits of hex ({Rows(forms=others)}):"
                " nobody can sign in with them, and if they are tokens in clear, whoever"
                " reads the table has them"
            )
            yield Finding(Level.WARNING, "tokens", text)
    elif rows.unhashed:
        honoured = "tokens in clear" if shape.at_rest == "plain" else "not honoured"
        text = (
            f"{about}{rows.unhashed} rows of {shape.token} are not hashed by handstamp"
            f" ({rows}; {honoured}): whoever reads the table has the tokens that stand"
            f" there. Run handstamp migrate-tokens --table {shape.table}"
            f" --token {shape.token} --id {shape.id}"
        )
        yield Finding(Level.WARNING, "tokens", text)
    elif shape.at_rest == "prefixed" and PRESETS[proposal.preset].at_rest == "plain":
        text = 'no row holds a token in clear any more: say at_rest="prefixed"'
        yield Finding(Level.NOTICE, "tokens", text)
    else:
        yield Finding(Level.OK, "tokens", f"{about}0 rows hold a token in clear")


def pooler_remarks(pooled: bool, *, mute: bool) -> Iterator[Finding]:
    """A pooler in between, and whether anything is heard through it."""
    if pooled:
        text = 'a pooler is in between: say connect={"statement_cache_size": 0}'
        yield Finding(Level.NOTICE, "pooler", text)
    if mute:
        text = (
            "LISTEN succeeds and nothing arrives: give an address of the server itself,"
            " as --listen-dsn here and as listen_dsn= to Sessions"
        )
        yield Finding(Level.WARNING, "pooler", text)


def server_remarks(facts: Facts) -> Iterator[Finding]:
    """A server that takes no writes."""
    if facts.standby:
        text = "the server is a standby: no sign-in, no revocation, and nobody can listen"
        yield Finding(Level.DANGER, "server", text)


def facts_remarks(facts: Facts) -> Iterator[Finding]:
    """Row level security, and triggers of the application."""
    if facts.row_security:
        text = (
            "row level security applies to this role: rows its policies hide do not exist"
        )
        yield Finding(Level.WARNING, "grants", text)
    if facts.triggers:
        text = (
            f"triggers of your own fire at an UPDATE: {', '.join(facts.triggers)}. One that"
            " sets the column of the last activity makes every write look like a visit"
        )
        yield Finding(Level.NOTICE, "trigger", text)


def clock_remarks(ahead: timedelta, uncertainty: timedelta) -> Iterator[Finding]:
    """The database's clock beside this machine's."""
    seconds = ahead.total_seconds()
    text = (
        f"the database's clock is {abs(seconds):.3f} s"
        f" {'ahead of' if seconds > 0 else 'behind'} this machine's"
        f" (± {uncertainty.total_seconds():.3f} s)"
    )
    off = max(abs(ahead) - uncertainty, timedelta(0))
    level = Level.OK if off <= _TOLERANCE else Level.NOTICE
    yield Finding(Level.WARNING if off > _FAR else level, "clock", text)


def bound_remarks(bound: str, heard: bool) -> Iterator[Finding]:
    """How late a session that was ended may still be believed."""
    if bound == "pushed":
        text = "a session that anybody ends is refused everywhere within milliseconds"
    elif heard:
        text = (
            "what handstamp ends is refused everywhere within milliseconds, what other"
            " writers end within max_staleness (5 s)"
        )
    else:
        text = "a session that is ended elsewhere is refused within max_staleness (5 s)"
    yield Finding(Level.OK, "bound", f"{bound}: {text}")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``bound`` is "pushed" or "max_staleness"."""

    bound: str
    findings: Sequence[Finding]


async def look_around(
    connection: Connection, listening: Connection, facts: Facts, *, covered: bool
) -> Surroundings:
    """``covered`` is whether every writer of the tables says what it ends."""
    # A standby refuses both LISTEN and NOTIFY.
    heard = not facts.standby and await delivers(connection, listening, token_hex(8))
    bound = "pushed" if covered and heard else "max_staleness"
    mute = not heard and not facts.standby
    return Surroundings(
        bound,
        [
            *pooler_remarks(is_pooled(connection, facts.pid), mute=mute),
            *server_remarks(facts),
            *clock_remarks(*await clock_difference(connection)),
            *bound_remarks(bound, heard),
        ],
    )


async def look_at_indexes(
    connection: Connection, samples: Sequence[Sample]
) -> list[Finding]:
    """The tables that a statement would read whole, each with the index it wants."""
    found, unseen = [], False
    for sample in samples:
        try:
            found += await _scan(connection, sample)
        except asyncpg.InsufficientPrivilegeError:
            unseen = True  # said of the grants
    return found or [_none(unseen=unseen)]


async def _scan(connection: Connection, sample: Sample) -> list[Finding]:
    found = []
    for table in await read_without_index(connection, sample.sql, sample.values):
        index = sample.indexes.get(table)
        if index is not None and await is_served_when_big(connection, index):
            continue
        text = f"{sample.feature} reads all of {table}, for want of an index"
        mend = "" if index is None else str(index)
        found.append(Finding(Level.WARNING, "indexes", text, mend))
    return found


def _none(*, unseen: bool) -> Finding:
    if not unseen:
        return Finding(Level.OK, "indexes", "every frequent statement uses an index")
    text = "not every frequent statement was looked at: mend the grants first"
    return Finding(Level.NOTICE, "indexes", text)


_ORDER = list(Level)
_HEARD = "the trigger is there and complete: every writer is heard"
_UNHEARD = "there is no trigger: what other writers end is noticed within max_staleness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How to use the table: the preset, the Python to paste under ``title``, and what the
    table can then do, in words."""

    preset: str
    title: str
    python: str
    capabilities: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of it. ``offer`` is None where a needed column could not be found; ``bound`` is
    "pushed" or "max_staleness"."""

    table: str
    facts: Facts
    offer: Offer | None
    bound: str
    findings: tuple[Finding, ...]

    def worst(self) -> Level:
        """The level of the worst finding."""
        levels = (finding.level for finding in self.findings)
        return max(levels, key=_ORDER.index, default=Level.OK)


async def diagnose(
    connection: Connection,
    listening: Connection,
    name: str,
    preset: str | None,
    at_rest: AtRest | None = None,
) -> Diagnosis:
    """Look at everything. ``listening`` is where the bus would listen, ``at_rest`` what
    somebody says of the tokens.

    Raises :class:`ConfigError` where there is no such table.
    """
    table = await read_table(connection, quoted(name))
    if table is None:
        raise ConfigError(f"there is no table {name}")
    oids = await read_oids(connection, [name])
    facts = await read_facts(connection, oids[name])
    rows = await _count(connection, name, choose_token(table, preset))
    proposal: Proposal | None = None
    try:
        proposal, users = await _propose(connection, name, table, rows, preset, at_rest)
        found, covered = await _look(connection, proposal, table, users, rows)
    except ConfigError as error:
        found, covered = [_danger(error)], False
    around = await look_around(connection, listening, facts, covered=covered)
    return Diagnosis(
        table=name,
        facts=facts,
        offer=None if proposal is None else _offer(proposal),
        bound=around.bound,
        findings=(*found, *facts_remarks(facts), *around.findings),
    )


def _offer(proposal: Proposal) -> Offer:
    preset = NAMES[proposal.preset]
    return Offer(
        preset=preset,
        title=f"Proposed shape, nearest to {preset}",
        python=as_python(proposal.shape, decided=proposal.decided),
        capabilities=capabilities(proposal.shape),
    )


async def _propose(
    connection: Connection,
    name: str,
    table: Table,
    rows: Rows | None,
    preset: str | None,
    at_rest: AtRest | None,
) -> tuple[Proposal, Users | None]:
    given = {"rows": rows, "preset": preset, "at_rest": at_rest}
    first = propose(name, table, **given)  # type: ignore[arg-type]
    default = "users" if first.preset == "ulid" else None
    users = await read_users(connection, name, first.shape.user_id, default)
    return propose(name, table, users=users, **given), users  # type: ignore[arg-type]


async def _look(
    connection: Connection,
    proposal: Proposal,
    table: Table,
    users: Users | None,
    rows: Rows | None,
) -> tuple[list[Finding], bool]:
    """What there is to say of the table; and whether every writer of it is heard."""
    shape = proposal.shape
    told = differences(shape, proposal.preset, decided=proposal.decided)
    found = [*told, *proposal.doubts]
    found += tokens_remarks(proposal, rows)
    dangers = [_danger(error) for error in refusals(shape, table, columns_of(shape))]
    try:
        resolved = resolve(shape, table, None if users is None else users.table)
    except ConfigError as error:
        if not dangers or _danger(error) not in dangers:
            dangers.insert(0, _danger(error))
        text = "grants, indexes and the trigger were not looked at: mend the dangers first"
        return [*dangers, *found, Finding(Level.NOTICE, "doctor", text)], False
    sql = Statements(resolved)
    dangers += await _long_ids(connection, shape, sql)
    found += await _grants(connection, resolved)
    found += await look_at_indexes(connection, samples(sql))
    trigger, covered = await _trigger(connection, resolved)
    return [*dangers, *found, *trigger], covered


def _danger(error: ConfigError) -> Finding:
    text, _, mend = str(error).partition(" Mend it with: ")
    return Finding(Level.DANGER, "table", text.rstrip("."), mend.rstrip(";"))


async def _count(connection: Connection, name: str, token: str | None) -> Rows | None:
    """None where it may not be read, or would take too long."""
    if token is None:
        return None
    try:
        async with connection.transaction():
            await connection.execute(TIME_LIMIT)
            return await count_rows(connection, name, token)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
        return None


async def _long_ids(
    connection: Connection, shape: TableShape, sql: Statements
) -> list[Finding]:
    """Ids that no token can carry, in more rows than the application itself looks at."""
    if sql.longest_ids is None:
        return []
    try:
        async with connection.transaction():
            await connection.execute(TIME_LIMIT)
            (longest,) = await connection.fetch(sql.longest_ids, BIG)
            refuse_long_ids(shape, dict(longest))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
        pass  # said of the tokens already
    except ConfigError as error:
        return [_danger(error)]
    return []


async def _grants(connection: Connection, resolved: ResolvedTable) -> list[Finding]:
    role = str(await connection.fetchval("select quote_ident(current_user)"))
    found = []
    for need in wanted(resolved):
        found += await _grant(connection, need, role)
    sequence = sequence_of(resolved)
    if sequence is not None and not await may_use_sequence(connection, sequence):
        text = f"sign-in needs USAGE of the sequence {sequence}"
        mend = f"grant usage on sequence {sequence} to {role}"
        found.append(Finding(Level.DANGER, "grants", text, mend))
    everything = Finding(Level.OK, "grants", f"the role {role} may do all that is needed")
    return found or [everything]


async def _grant(connection: Connection, need: Need, role: str) -> list[Finding]:
    asked = [(need.privilege, column) for column in need.columns]
    missing = await missing_privileges(connection, need.table, asked)
    if not missing:
        return []
    text = f"{need.feature} needs {', '.join(missing)} on {need.table}"
    level = Level.DANGER if need.vital else Level.WARNING
    privileges = need.privilege.lower()
    if need.columns != (None,):
        privileges += f" ({', '.join(quoted(c) for c in need.columns if c)})"
    mend = f"grant {privileges} on {quoted(need.table)} to {role}"
    return [Finding(level, "grants", text, mend)]


async def _trigger(
    connection: Connection, resolved: ResolvedTable
) -> tuple[list[Finding], bool]:
    hearing = await listen_for(connection, triggers_of(resolved))
    found = trigger_findings(hearing, complete=_HEARD, absent=_UNHEARD)
    return found, not hearing.lacks


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, each text once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: -_ORDER.index(finding.level))
