"""What `handstamp doctor` finds: one function for each thing it looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from handstamp.errors import ConfigError
from handstamp.stores import examining
from handstamp.stores.catalog import Table, read_table
from handstamp.stores.comparing import differences
from handstamp.stores.dangers import refusals
from handstamp.stores.findings import Finding, Level
from handstamp.stores.fitting import Fitted, fit
from handstamp.stores.needs import Need, samples, sequence_of, wanted
from handstamp.stores.proposing import (
    PRESETS,
    Proposal,
    Rows,
    Users,
    choose_token,
    columns_of,
    propose,
)
from handstamp.stores.shapes import quoted
from handstamp.stores.statements import Statements
from handstamp.stores.triggering import lacking, trigger_sql

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection

_TOLERANCE = timedelta(seconds=1)
_FAR = timedelta(minutes=1)
_ORDER = list(Level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of it. ``proposal`` is None where a needed column could not be found;
    ``bound`` is "pushed" or "max_staleness"."""

    table: str
    facts: examining.Facts
    proposal: Proposal | None
    bound: str
    findings: tuple[Finding, ...]

    def worst(self) -> Level:
        """The level of the worst finding."""
        levels = (finding.level for finding in self.findings)
        return max(levels, key=_ORDER.index, default=Level.OK)


async def diagnose(
    connection: Connection, listening: Connection, name: str, preset: str | None
) -> Diagnosis:
    """Look at everything. ``listening`` is where the bus would listen.

    Raises :class:`ConfigError` where there is no such table.
    """
    table = await read_table(connection, quoted(name))
    if table is None:
        raise ConfigError(f"there is no table {name}")
    facts = await examining.read_facts(connection, name)
    rows = await _count(connection, name, choose_token(table, preset))
    proposal: Proposal | None = None
    try:
        proposal, users = await _propose(connection, name, table, rows, preset)
        found, covered = await _look(connection, proposal, table, users, rows)
    except ConfigError as error:
        found, covered = [_danger(error)], False
    heard = await examining.is_heard(connection, listening)
    bound = "pushed" if covered and heard else "max_staleness"
    found += _pooler(examining.is_pooled(connection, facts.pid), heard)
    found += [*_facts(facts), *_clock(*await examining.clock_difference(connection))]
    found += _bound(bound, heard)
    return Diagnosis(
        table=name, facts=facts, proposal=proposal, bound=bound, findings=tuple(found)
    )


async def _propose(
    connection: Connection, name: str, table: Table, rows: Rows | None, preset: str | None
) -> tuple[Proposal, Users | None]:
    first = propose(name, table, rows=rows, preset=preset)
    default = "users" if first.preset == "ulid" else None
    users = await examining.read_users(connection, name, first.shape.user_id, default)
    return propose(name, table, users=users, rows=rows, preset=preset), users


async def _look(
    connection: Connection,
    proposal: Proposal,
    table: Table,
    users: Users | None,
    rows: Rows | None,
) -> tuple[list[Finding], bool]:
    """What there is to say of the table; and whether every writer of it is heard."""
    shape = proposal.shape
    found = [*differences(shape, proposal.preset), *proposal.doubts]
    found += _tokens(proposal, rows)
    dangers = [_danger(error) for error in refusals(shape, table, columns_of(shape))]
    try:
        fitted = fit(shape, table, None if users is None else users.table)
    except ConfigError as error:
        if not dangers or _danger(error) not in dangers:
            dangers.insert(0, _danger(error))
        text = "grants, indexes and the trigger were not looked at: mend the dangers first"
        return [*dangers, *found, Finding(Level.NOTICE, "doctor", text)], False
    found += await _grants(connection, fitted)
    found += await _indexes(connection, fitted)
    trigger, covered = await _trigger(connection, fitted)
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
            await connection.execute(examining.TIME_LIMIT)
            return await examining.count_rows(connection, name, token)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
        return None


def _tokens(proposal: Proposal, rows: Rows | None) -> Iterator[Finding]:
    shape = proposal.shape
    if rows is None:
        text = "the rows were not counted: no right to read them, or no answer in time"
        yield Finding(Level.NOTICE, "tokens", text)
        return
    about = "about " if rows.about else ""
    if shape.at_rest == "digest":
        if rows.other:
            text = (
                f"{about}{rows.other} rows hold something other than a SHA-256 digest in"
                f" hex in {shape.token}: nobody can sign in with them, and if they are"
                " tokens in clear, whoever reads the table has them"
            )
            yield Finding(Level.WARNING, "tokens", text)
    elif rows.in_clear:
        text = f"{about}{rows.in_clear} rows still hold a token in clear: whoever reads"
        options = f"--table {shape.table} --token {shape.token} --id {shape.id}"
        text += f" the table has them. Run handstamp migrate-tokens {options}"
        yield Finding(Level.WARNING, "tokens", text)
    elif shape.at_rest == "prefixed" and PRESETS[proposal.preset].at_rest == "plain":
        text = 'no row holds a token in clear any more: say at_rest="prefixed"'
        yield Finding(Level.NOTICE, "tokens", text)
    else:
        yield Finding(Level.OK, "tokens", f"{about}0 rows hold a token in clear")


async def _grants(connection: Connection, fitted: Fitted) -> list[Finding]:
    role = str(await connection.fetchval("select quote_ident(current_user)"))
    found = []
    for need in wanted(fitted):
        found += await _grant(connection, need, role)
    sequence = sequence_of(fitted)
    if sequence is not None and not await examining.may_use_sequence(connection, sequence):
        text = f"sign-in needs USAGE of the sequence {sequence}"
        mend = f"grant usage on sequence {sequence} to {role}"
        found.append(Finding(Level.DANGER, "grants", text, mend))
    everything = Finding(Level.OK, "grants", f"the role {role} may do all that is needed")
    return found or [everything]


async def _grant(connection: Connection, need: Need, role: str) -> list[Finding]:
    asked = [(need.privilege, column) for column in need.columns]
    missing = await examining.missing_privileges(connection, need.table, asked)
    if not missing:
        return []
    text = f"{need.feature} needs {', '.join(missing)} on {need.table}"
    level = Level.DANGER if need.vital else Level.WARNING
    privileges = need.privilege.lower()
    if need.columns != (None,):
        privileges += f" ({', '.join(quoted(c) for c in need.columns if c)})"
    mend = f"grant {privileges} on {quoted(need.table)} to {role}"
    return [Finding(level, "grants", text, mend)]


async def _indexes(connection: Connection, fitted: Fitted) -> list[Finding]:
    found = []
    for sample in samples(Statements(fitted)):
        try:
            tables = await examining.read_without_index(
                connection, sample.sql, sample.values
            )
        except asyncpg.InsufficientPrivilegeError:
            continue  # said of the grants
        for table in tables:
            text = f"{sample.feature} reads all of {table}, for want of an index"
            own = sample.column if table == fitted.shape.table.rpartition(".")[2] else None
            mend = f"create index concurrently on {quoted(fitted.shape.table)} ({own})"
            found.append(Finding(Level.WARNING, "indexes", text, mend if own else ""))
    return found or [Finding(Level.OK, "indexes", "every frequent statement uses an index")]


async def _trigger(connection: Connection, fitted: Fitted) -> tuple[list[Finding], bool]:
    shape = fitted.shape
    users = None if shape.users is None else shape.users.table
    triggers = await examining.read_triggers(connection, shape.table, users)
    lacks = lacking(fitted, triggers)
    if not lacks:
        text = "the trigger is there and complete: every writer is heard"
        return [Finding(Level.OK, "trigger", text)], True
    mend = trigger_sql(fitted).rstrip().removesuffix(";")
    if not triggers:
        text = "there is no trigger: what other writers end is noticed within max_staleness"
        return [Finding(Level.NOTICE, "trigger", text, mend)], False
    relied = await examining.relies_on_trigger(connection, shape.table, users)
    level = Level.DANGER if relied else Level.WARNING
    said = "and handstamp relies on it" if relied else "so handstamp does not rely on it"
    text = f"the trigger is not complete, {said}: unheard would be {', '.join(lacks)}"
    return [Finding(level, "trigger", text, mend)], False


def _pooler(pooled: bool, heard: bool) -> Iterator[Finding]:
    if pooled:
        text = 'a pooler is in between: say connect={"statement_cache_size": 0}'
        yield Finding(Level.NOTICE, "pooler", text)
    if not heard:
        text = (
            "LISTEN succeeds and nothing arrives: give an address of the server itself,"
            " as --listen-dsn here and as listen_dsn= to Sessions"
        )
        yield Finding(Level.WARNING, "pooler", text)


def _facts(facts: examining.Facts) -> Iterator[Finding]:
    if facts.standby:
        text = "the server is a standby: no sign-in, no revocation, and nobody can listen"
        yield Finding(Level.DANGER, "server", text)
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


def _clock(ahead: timedelta, uncertainty: timedelta) -> Iterator[Finding]:
    seconds = ahead.total_seconds()
    text = (
        f"the database's clock is {abs(seconds):.3f} s"
        f" {'ahead of' if seconds > 0 else 'behind'} this machine's"
        f" (± {uncertainty.total_seconds():.3f} s)"
    )
    off = max(abs(ahead) - uncertainty, timedelta(0))
    level = Level.OK if off <= _TOLERANCE else Level.NOTICE
    yield Finding(Level.WARNING if off > _FAR else level, "clock", text)


def _bound(bound: str, heard: bool) -> Iterable[Finding]:
    if bound == "pushed":
        text = "a session that anybody ends is refused everywhere within milliseconds"
    elif heard:
        text = (
            "what handstamp ends is refused everywhere within milliseconds, what other"
            " writers end within max_staleness (5 s)"
        )
    else:
        text = "a session that is ended elsewhere is refused within max_staleness (5 s)"
    return [Finding(Level.OK, "bound", f"{bound}: {text}")]


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, each text once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: -_ORDER.index(finding.level))
