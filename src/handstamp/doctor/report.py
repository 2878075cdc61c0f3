"""What `handstamp doctor` reports: every answer of the database as a finding.

Rule 1. A finding says what is so, what it costs, and the SQL that corrects it, if there is
any.
Rule 2. All dangers of a table are reported at once, so that one run is enough.
Rule 3. The proposed shape is Python to paste. It raises until a person has filled in what
only a person can know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from secrets import token_hex

import asyncpg

from handstamp.doctor import Diagnosis, Facts, Finding, Level, Offer
from handstamp.doctor.check import (
    BIG,
    TIME_LIMIT,
    Sample,
    TriggerState,
    clock_difference,
    count_rows,
    is_pooled,
    is_served_when_big,
    may_use_sequence,
    missing_privileges,
    needed_privileges,
    read_facts,
    read_oids,
    read_triggers,
    read_users,
    read_without_index,
    samples,
    sequence_of,
)
from handstamp.doctor.infer import (
    NAMES,
    NEEDED,
    PRESETS,
    Proposal,
    Users,
    choose_token,
    columns_of,
    differences,
    propose,
)
from handstamp.errors import ConfigError
from handstamp.stores.connection import Connection
from handstamp.stores.notify import delivers
from handstamp.stores.notify.sql import triggers_of
from handstamp.stores.plaintext import SHA256, Rows
from handstamp.stores.resolve import (
    ResolvedTable,
    Table,
    capabilities_of,
    read_table,
    refusals,
    refuse_long_ids,
    resolve,
)
from handstamp.stores.shapes import AtRest, TableShape, UsersTable, quoted
from handstamp.stores.statements import Statements

_CLOCK_TOLERANCE = timedelta(seconds=1)
_CLOCK_FAR_OFF = timedelta(minutes=1)
_CAPABILITIES: Mapping[str, str] = {
    "refresh": "refresh tokens that rotate",
    "sliding": "an expiry that moves with activity",
    "activity": "last activity and idle limit",
    "absolute": "absolute limit from the sign-in",
    "user_status": "a disabled user's sessions end",
    "password_change": "a changed password can end sessions",
    "level": "trust levels and step-up",
    "fingerprint": "device fingerprint",
    "plain": "plaintext tokens are accepted and replaced",
}


async def diagnose(
    connection: Connection,
    listening: Connection,
    name: str,
    preset: str | None,
    at_rest: AtRest | None = None,
) -> Diagnosis:
    """Examine the table ``name`` and everything around it.

    ``listening`` is a connection to the address where handstamp would listen. ``preset`` is
    the shape to start from, ``at_rest`` how tokens are stored, if that is known. Raises
    :class:`ConfigError` if there is no such table.
    """
    table = await read_table(connection, quoted(name))
    if table is None:
        raise ConfigError(f"there is no table {name}")
    oids = await read_oids(connection, [name])
    facts = await read_facts(connection, oids[name])
    token = choose_token(table, preset)
    rows: Rows | None = None
    if token is not None:
        try:
            async with connection.transaction():
                await connection.execute(TIME_LIMIT)
                rows = await count_rows(connection, name, token)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
            pass  # reported with the tokens
    offer: Offer | None = None
    try:
        given = {"rows": rows, "preset": preset, "at_rest": at_rest}
        proposal = propose(name, table, **given)  # type: ignore[arg-type]
        default = "users" if proposal.preset == "ulid" else None
        users = await read_users(connection, name, proposal.shape.user_id, default)
        proposal = propose(name, table, users=users, **given)  # type: ignore[arg-type]
        offer = _offer(proposal)
        found, all_writers_notify = await _table(connection, proposal, table, users, rows)
    except ConfigError as error:
        found, all_writers_notify = [_danger(error)], False
    bound, around = await server_findings(
        connection, listening, facts, all_writers_notify=all_writers_notify
    )
    findings = (*found, *_facts(facts), *around)
    return Diagnosis(table=name, facts=facts, offer=offer, bound=bound, findings=findings)


def _offer(proposal: Proposal) -> Offer:
    able, preset = capabilities_of(proposal.shape), NAMES[proposal.preset]
    return Offer(
        preset=preset,
        title=f"Proposed shape, nearest to {preset}",
        python=as_python(proposal.shape, decided=proposal.decided),
        capabilities={
            words: bool(getattr(able, name)) for name, words in _CAPABILITIES.items()
        },
    )


def as_python(shape: TableShape, *, decided: bool = True) -> str:
    """Python that makes ``shape``, with its imports.

    If it is not ``decided`` how tokens are stored, it raises until that is filled in.
    """
    preset = next((n for key, n in NAMES.items() if PRESETS[key] == shape), None)
    if preset is not None and decided:
        return f"from handstamp import {preset}\n\nshape = {preset}\n"
    open_question: dict[str, object] = {} if decided else {"at_rest": ...}
    remark = "" if decided else '# Fill in at_rest=: see "tokens" below.\n'
    for key, name in NAMES.items():
        pairs = [(f.name, getattr(shape, f.name)) for f in fields(shape)]
        changed = {n: v for n, v in pairs if v != getattr(PRESETS[key], n)} | open_question
        if len(changed) <= 2 and "users" not in changed:
            given = ", ".join(f"{k}={_literal(v)}" for k, v in changed.items())
            return (
                "from dataclasses import replace\n\n"
                f"from handstamp import {name}\n\n"
                f"{remark}shape = replace({name}, {given})\n"
            )
    default = TableShape()
    names = ["TableShape"] + ([] if shape.users is None else ["UsersTable"])
    if shape.users == default.users:
        names = ["TableShape"]
    lines = [
        f"    {field.name}={_literal(open_question.get(field.name, value))},"
        for field in fields(shape)
        if (value := getattr(shape, field.name)) != getattr(default, field.name)
        or field.name in ("table", *NEEDED, *open_question)
    ]
    head = f"from handstamp import {', '.join(names)}"
    return "\n".join([head, "", f"{remark}shape = TableShape(", *lines, ")", ""])


def _literal(value: object) -> str:
    if value is ...:
        return "..."
    if not isinstance(value, UsersTable):
        return "None" if value is None else f'"{value}"'
    default = UsersTable()
    given = ", ".join(
        f"{field.name}={_literal(own)}"
        for field in fields(value)
        if (own := getattr(value, field.name)) != getattr(default, field.name)
    )
    return f"UsersTable({given})"


async def _table(
    connection: Connection,
    proposal: Proposal,
    table: Table,
    users: Users | None,
    rows: Rows | None,
) -> tuple[list[Finding], bool]:
    """The findings about the table, and whether every writer of it notifies."""
    shape = proposal.shape
    found = differences(shape, proposal.preset, decided=proposal.decided)
    found += [*proposal.doubts, *_tokens(proposal, rows)]
    dangers = [_danger(error) for error in refusals(shape, table, columns_of(shape))]
    try:
        resolved = resolve(shape, table, None if users is None else users.table)
    except ConfigError as error:
        if not dangers or _danger(error) not in dangers:
            dangers.insert(0, _danger(error))
        text = "grants, indexes and trigger were not examined: correct the dangers first"
        return [*dangers, *found, Finding(Level.NOTICE, "doctor", text)], False
    sql = Statements(resolved)
    dangers += await _long_ids(connection, shape, sql)
    found += await _grants(connection, resolved)
    found += await index_findings(connection, samples(sql))
    state = await read_triggers(connection, triggers_of(resolved))
    found += trigger_findings(
        state,
        complete="the trigger is complete: every writer notifies",
        absent="there is no trigger: handstamp notices what other writers end within"
        " max_staleness",
    )
    return [*dangers, *found], not state.lacks


def _danger(error: ConfigError) -> Finding:
    text, _, mend = str(error).partition(" Fix it with: ")
    return Finding(Level.DANGER, "table", text.rstrip("."), mend.rstrip(";"))


def _tokens(proposal: Proposal, rows: Rows | None) -> Iterator[Finding]:
    """Plaintext tokens, by the forms of the rows."""
    shape = proposal.shape
    if rows is None:
        text = "the rows were not counted: no right to read them, or no answer in time"
        yield Finding(Level.NOTICE, "tokens", text)
        return
    if not proposal.decided:
        return  # reported with the proposal
    about = "about " if rows.about else ""
    if shape.at_rest == "digest":
        others = {name: n for name, n in rows.forms.items() if name != SHA256}
        if others:
            text = (
                f"{about}{sum(others.values())} rows of {shape.token} hold something other"
                f" than a SHA-256 digest of small hex digits ({Rows(forms=others)}). These"
                " sessions are not valid. If the texts are plaintext tokens, anyone who can"
                " read the table has them"
            )
            yield Finding(Level.WARNING, "tokens", text)
    elif rows.unhashed:
        accepted = "plaintext tokens" if shape.at_rest == "plain" else "not accepted"
        text = (
            f"{about}{rows.unhashed} rows of {shape.token} are not hashed by handstamp"
            f" ({rows}; {accepted}): anyone who can read the table has these tokens."
            f" Run handstamp migrate-tokens --table {shape.table}"
            f" --token {shape.token} --id {shape.id}"
        )
        yield Finding(Level.WARNING, "tokens", text)
    elif shape.at_rest == "prefixed" and PRESETS[proposal.preset].at_rest == "plain":
        text = 'no row holds a plaintext token any more: set at_rest="prefixed"'
        yield Finding(Level.NOTICE, "tokens", text)
    else:
        yield Finding(Level.OK, "tokens", f"{about}0 rows hold a plaintext token")


async def _long_ids(
    connection: Connection, shape: TableShape, sql: Statements
) -> list[Finding]:
    """Ids that no token can carry, in more rows than the application itself reads."""
    if sql.longest_ids is None:
        return []
    try:
        async with connection.transaction():
            await connection.execute(TIME_LIMIT)
            (longest,) = await connection.fetch(sql.longest_ids, BIG)
            refuse_long_ids(shape, dict(longest))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.QueryCanceledError):
        pass  # reported with the tokens
    except ConfigError as error:
        return [_danger(error)]
    return []


async def _grants(connection: Connection, resolved: ResolvedTable) -> list[Finding]:
    role = str(await connection.fetchval("select quote_ident(current_user)"))
    found = []
    for need in needed_privileges(resolved):
        asked = [(need.privilege, column) for column in need.columns]
        missing = await missing_privileges(connection, need.table, asked)
        if missing:
            text = f"{need.feature} needs {', '.join(missing)} on {need.table}"
            privilege = need.privilege.lower()
            if need.columns != (None,):
                privilege += f" ({', '.join(quoted(c) for c in need.columns if c)})"
            mend = f"grant {privilege} on {quoted(need.table)} to {role}"
            level = Level.DANGER if need.vital else Level.WARNING
            found.append(Finding(level, "grants", text, mend))
    sequence = sequence_of(resolved)
    if sequence is not None and not await may_use_sequence(connection, sequence):
        text = f"sign-in needs USAGE of the sequence {sequence}"
        mend = f"grant usage on sequence {sequence} to {role}"
        found.append(Finding(Level.DANGER, "grants", text, mend))
    everything = f"the role {role} has every right that is needed"
    return found or [Finding(Level.OK, "grants", everything)]


async def index_findings(
    connection: Connection, samples: Sequence[Sample]
) -> list[Finding]:
    """The tables that a frequent statement would read whole, with the missing index."""
    found, unseen = [], False
    for sample in samples:
        try:
            tables = await read_without_index(connection, sample.sql, sample.values)
        except asyncpg.InsufficientPrivilegeError:
            unseen = True  # reported with the grants
            continue
        for table in tables:
            index = sample.indexes.get(table)
            if index is not None and await is_served_when_big(connection, index):
                continue
            text = f"{sample.feature} reads all of {table}, because an index is missing"
            mend = "" if index is None else str(index)
            found.append(Finding(Level.WARNING, "indexes", text, mend))
    if found:
        return found
    if unseen:
        text = "not every frequent statement was examined: correct the grants first"
        return [Finding(Level.NOTICE, "indexes", text)]
    return [Finding(Level.OK, "indexes", "every frequent statement uses an index")]


def trigger_findings(state: TriggerState, *, complete: str, absent: str) -> list[Finding]:
    """The finding about the trigger.

    ``complete`` and ``absent`` are the sentences for a complete trigger and for none.
    """
    if not state.lacks:
        return [Finding(Level.OK, "trigger", complete)]
    if state.absent:
        return [Finding(Level.NOTICE, "trigger", absent, state.mend)]
    level = Level.DANGER if state.dangerous else Level.WARNING
    text = "the trigger is not complete, so handstamp does not rely on it"
    return [Finding(level, "trigger", f"{text}: {'; '.join(state.lacks)}", state.mend)]


def _facts(facts: Facts) -> Iterator[Finding]:
    """Row level security, and triggers of the application."""
    if facts.row_security:
        text = (
            "row level security applies to this role: rows that its policies hide do not"
            " exist for handstamp"
        )
        yield Finding(Level.WARNING, "grants", text)
    if facts.triggers:
        text = (
            f"triggers of your own fire at an UPDATE: {', '.join(facts.triggers)}. A"
            " trigger that sets the column of the last activity makes every write look like"
            " activity"
        )
        yield Finding(Level.NOTICE, "trigger", text)


async def server_findings(
    connection: Connection,
    listening: Connection,
    facts: Facts,
    *,
    all_writers_notify: bool,
) -> tuple[str, list[Finding]]:
    """The bound ("pushed" or "max_staleness"), and the findings about the server, a pooler
    in between, and the clocks.

    ``all_writers_notify`` is whether the trigger of the table is complete.
    """
    found = []
    # A standby refuses both LISTEN and NOTIFY.
    delivered = not facts.standby and await delivers(connection, listening, token_hex(8))
    if is_pooled(connection, facts.pid):
        text = 'there is a pooler in between: give connect={"statement_cache_size": 0}'
        found.append(Finding(Level.NOTICE, "pooler", text))
    if facts.standby:
        text = "the server is a standby: sign-in, revocation and LISTEN are not possible"
        found.append(Finding(Level.DANGER, "server", text))
    elif not delivered:
        text = (
            "LISTEN succeeds and no notification arrives: give the address of the server"
            " itself, as --listen-dsn here and as listen_dsn= to Sessions"
        )
        found.append(Finding(Level.WARNING, "pooler", text))
    found.append(_clock(*await clock_difference(connection)))
    bound = "pushed" if all_writers_notify and delivered else "max_staleness"
    if bound == "pushed":
        text = "a session that anything ends is refused everywhere within milliseconds"
    elif delivered:
        text = (
            "a session that handstamp ends is refused everywhere within milliseconds, one"
            " that another writer ends within max_staleness (5 s)"
        )
    else:
        text = "a session that ends elsewhere is refused within max_staleness (5 s)"
    found.append(Finding(Level.OK, "bound", f"{bound}: {text}"))
    return bound, found


def _clock(ahead: timedelta, uncertainty: timedelta) -> Finding:
    """The database's clock, compared with this machine's."""
    seconds = ahead.total_seconds()
    text = (
        f"the database's clock is {abs(seconds):.3f} s"
        f" {'ahead of' if seconds > 0 else 'behind'} this machine's"
        f" (± {uncertainty.total_seconds():.3f} s)"
    )
    off = max(abs(ahead) - uncertainty, timedelta(0))
    level = Level.OK if off <= _CLOCK_TOLERANCE else Level.NOTICE
    return Finding(Level.WARNING if off > _CLOCK_FAR_OFF else level, "clock", text)
