"""What `handstamp doctor` finds: one function for each thing it looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from handstamp.cli.indexes import look_at_indexes
from handstamp.cli.remarks import facts_remarks, tokens_remarks
from handstamp.cli.surroundings import look_around
from handstamp.errors import ConfigError
from handstamp.stores.catalog import Table, read_table
from handstamp.stores.dangers import refusals, refuse_long_ids
from handstamp.stores.doctor import examining
from handstamp.stores.doctor.comparing import NAMES, as_python, capabilities, differences
from handstamp.stores.doctor.doubting import Users, columns_of
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.needs import Need, samples, sequence_of, wanted
from handstamp.stores.doctor.proposing import (
    Proposal,
    choose_token,
    propose,
)
from handstamp.stores.doctor.triggering import listen_for, trigger_findings
from handstamp.stores.fitting import Fitted, fit
from handstamp.stores.notify_trigger import triggers_of
from handstamp.stores.shapes import AtRest, TableShape, quoted
from handstamp.stores.statements import Statements
from handstamp.stores.token_forms import Rows

if TYPE_CHECKING:
    from handstamp.cli.connecting import Connection

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
    facts: examining.Facts
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
    oids = await examining.read_oids(connection, [name])
    facts = await examining.read_facts(connection, oids[name])
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
    users = await examining.read_users(connection, name, first.shape.user_id, default)
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
        fitted = fit(shape, table, None if users is None else users.table)
    except ConfigError as error:
        if not dangers or _danger(error) not in dangers:
            dangers.insert(0, _danger(error))
        text = "grants, indexes and the trigger were not looked at: mend the dangers first"
        return [*dangers, *found, Finding(Level.NOTICE, "doctor", text)], False
    sql = Statements(fitted)
    dangers += await _long_ids(connection, shape, sql)
    found += await _grants(connection, fitted)
    found += await look_at_indexes(connection, samples(sql))
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


async def _long_ids(
    connection: Connection, shape: TableShape, sql: Statements
) -> list[Finding]:
    """Ids that no token can carry, in more rows than the application itself looks at."""
    if sql.longest_ids is None:
        return []
    try:
        async with connection.transaction():
            await connection.execute(examining.TIME_LIMIT)
            (longest,) = await connection.fetch(sql.longest_ids, examining.BIG)
            refuse_long_ids(shape, dict(longest))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
        pass  # said of the tokens already
    except ConfigError as error:
        return [_danger(error)]
    return []


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


async def _trigger(connection: Connection, fitted: Fitted) -> tuple[list[Finding], bool]:
    hearing = await listen_for(connection, triggers_of(fitted))
    found = trigger_findings(hearing, complete=_HEARD, absent=_UNHEARD)
    return found, not hearing.lacks


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, each text once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: -_ORDER.index(finding.level))
