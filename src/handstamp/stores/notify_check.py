"""Whether the trigger in a database is the one that handstamp makes.

Rule 1. A name proves nothing. What is compared of a trigger is the table, the event, the
condition, the arguments, whether it is enabled, in each partition too, and its function;
of a function its body, its language, its search path, and that it runs with the rights of
whoever writes.
Rule 2. The owner of a function can replace it at any time, and it runs with the rights of
everybody who writes to the table. So the owner must be a role that may create triggers on
that table: its owner, a superuser, or whoever was given that privilege. Such a role could
do as much without the function; to any other role owning it gives rights.
Rule 3. Where something cannot be heard by triggers at all, in a foreign table or in a table
that inherits from another one, they are not complete.
Rule 4. What was changed and changed back between two looks was different in between, so it
counts as a change (:func:`read_version`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg

from handstamp.stores.connection import Connection
from handstamp.stores.notify_trigger import (
    BODIES,
    ROW,
    SEARCH_PATH,
    NotifyTrigger,
    functions_of,
    tables_of,
)

_TREE = """
    with recursive asked as (
        select name, to_regclass(name)::oid as oid from unnest($1::text[]) as u (name)),
    tree (root, oid) as (
        select oid, oid from asked where oid is not null
        union select tree.root, i.inhrelid
        from tree join pg_catalog.pg_inherits i on i.inhparent = tree.oid)"""

# Takes no lock on a table, so it waits for nobody who changes one.
_VERSION = f"""{_TREE}
    select coalesce(string_agg(concat_ws(' ', tree.root, tree.oid, t.oid, t.xmin, p.xmin,
            has_table_privilege(p.proowner, tree.root, 'trigger')), ','
        order by tree.root, tree.oid, t.oid), '')
    from tree left join pg_catalog.pg_trigger t
        on t.tgrelid = tree.oid and t.tgname = any($2::text[])
    left join pg_catalog.pg_proc p on p.oid = t.tgfoid"""  # noqa: S608

_FUNCTION = """
    quote_ident(s.nspname) || '.' || quote_ident(p.proname) || '()' as place,
    p.prosrc as body,
    l.lanname = 'plpgsql' and p.prokind = 'f' and p.provolatile = 'v' as plain,
    p.prosecdef as definer, coalesce(p.proconfig, '{}') as settings,
    quote_ident(pg_get_userbyid(p.proowner)) as owner"""
_ITS_PLACE = """
    join pg_catalog.pg_namespace s on s.oid = p.pronamespace
    join pg_catalog.pg_language l on l.oid = p.prolang"""

_TRIGGERS = f"""{_TREE}
    select a.name as table, c.relkind in ('r', 'p') as holds_rows,
        exists (select from tree join pg_catalog.pg_class r on r.oid = tree.oid
            where tree.root = a.oid and (r.relkind = 'f'
                or c.relkind = 'r' and tree.oid <> tree.root)) as elsewhere,
        t.tgname::text as name, t.tgenabled in ('O', 'A') as enabled,
        t.tgtype::int as type, t.tgargs as arguments,
        cardinality(t.tgattr::int2[]) = 0 as any_column,
        t.tgconstraint = 0 and not t.tgdeferrable and t.tgoldtable is null
            and t.tgnewtable is null as ordinary,
        pg_get_triggerdef(t.oid) as definition,
        exists (select from pg_catalog.pg_depend d where d.objid = t.oid
            and d.classid = 'pg_catalog.pg_trigger'::regclass
            and d.refclassid in ('pg_catalog.pg_proc'::regclass,
                'pg_catalog.pg_operator'::regclass)
            and d.refobjid <> t.tgfoid) as depends,
        array(select r.oid::regclass::text from tree
            join pg_catalog.pg_class r on r.oid = tree.oid
            where tree.root = a.oid and tree.oid <> a.oid and not exists (
                select from pg_catalog.pg_trigger k
                where k.tgrelid = tree.oid and k.tgname = t.tgname and k.tgparentid <> 0
                and k.tgfoid = t.tgfoid and k.tgenabled in ('O', 'A'))
            order by 1) as parts,
        has_table_privilege(p.proowner, c.oid, 'trigger') as trusted, {_FUNCTION}
    from asked a left join pg_catalog.pg_class c on c.oid = a.oid
    left join (pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
        {_ITS_PLACE})
        on t.tgrelid = c.oid and not t.tgisinternal and t.tgname = any($2::text[])"""  # noqa: S608

_FUNCTIONS = f"""
    select p.proname::text as name,
        (select coalesce(bool_and(has_table_privilege(
                p.proowner, to_regclass(u.name), 'trigger') is true), false)
            from unnest($1::text[]) as u (name)) as trusted,
        {_FUNCTION}
    from pg_catalog.pg_proc p {_ITS_PLACE}
    where p.proname = any($2::text[]) and p.pronargs = 0
    and case when $3::text is null then pg_function_is_visible(p.oid)
        else s.nspname = $3 end
    order by p.proname"""  # noqa: S608

_TYPE = (
    r'(?:"?[\w$]+"?\.)*"?[\w$]+"?(?: varying| precision)?(?:\([\d,]+\))?'
    r"(?: with(?:out)? time zone)?(?:\[\])*"
)
_TOKEN = re.compile(
    rf"(?P<text>'(?:[^']|'')*')|\"(?P<quoted>(?:[^\"]|\"\")*)\"|(?P<cast>::{_TYPE})"
    r"|(?P<space>\s+|\bpg_catalog\.)|(?P<word>[A-Za-z_0-9$]+)|(?P<other>.)"
)
_KEYWORDS = frozenset({"and", "or", "not", "from"})
_SAME_UNQUOTED = re.compile(r"[a-z_][a-z0-9_$]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why something is not heard, in words.

    ``mend`` is the SQL that gets out of the way what is there; where it is ``replaceable``,
    the script that makes the trigger is enough. With ``dangerous`` somebody without rights
    on the table decides what runs with the rights of whoever writes to it.
    """

    text: str
    mend: str = ""
    replaceable: bool = True
    dangerous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found of the triggers that ought to be there; ``absent`` if nothing was."""

    missing: tuple[NotifyTrigger, ...]
    problems: tuple[Problem, ...]
    absent: bool

    @property
    def complete(self) -> bool:
        """Whether every writer is heard, as far as triggers can tell."""
        return not self.missing and not self.problems

    @property
    def lacks(self) -> list[str]:
        """What is wrong, in words."""
        return [problem.text for problem in self.problems] + [
            f"there is no trigger {trigger.name} on {shown(trigger.table)}"
            for trigger in self.missing
        ]


async def read_version(connection: Connection, triggers: Sequence[NotifyTrigger]) -> str:
    """A text that is another one whenever anything may have changed about these triggers
    since it was read; empty where there is no table."""
    named = [trigger.name for trigger in triggers]
    version = await connection.fetchval(_VERSION, tables_of(triggers), named)
    return str(version)


async def check_triggers(
    connection: Connection, triggers: Sequence[NotifyTrigger]
) -> Checked:
    """Compare the triggers in the catalog with those that ought to be there."""
    named = [trigger.name for trigger in triggers]
    rows = await connection.fetch(_TRIGGERS, tables_of(triggers), named)
    found = {(row["table"], row["name"]): row for row in rows if row["name"]}
    problems = [text for row in rows for text in _table_problems(row)]
    missing = []
    for trigger in triggers:
        row = found.get((trigger.table, trigger.name))
        if row is None:
            missing.append(trigger)
        else:
            problems += _trigger_problems(trigger, row)
    return Checked(
        missing=tuple(missing),
        problems=tuple(dict.fromkeys(problems)),
        absent=len(missing) == len(triggers) and not problems,
    )


async def check_functions(
    connection: Connection, triggers: Sequence[NotifyTrigger], schema: str | None = None
) -> Mapping[str, Problem | None]:
    """The functions of these names that are there, in ``schema`` or else wherever a call
    would find them; and what speaks against each."""
    names = functions_of(triggers)
    rows = await connection.fetch(_FUNCTIONS, tables_of(triggers), names, schema)
    return {row["name"]: _function_problem(row["name"], row) for row in rows}


def shown(table: str) -> str:
    """The name of a table as people write it."""
    return table.replace('"', "")


def _table_problems(row: asyncpg.Record) -> Iterator[Problem]:
    table = shown(row["table"])
    if not row["holds_rows"]:
        yield Problem(text=f"{table} is no table with rows of its own")
    elif row["elsewhere"]:
        text = f"other tables inherit from {table}, or hold a part of it on another server"
        yield Problem(text=text)


def _trigger_problems(trigger: NotifyTrigger, row: asyncpg.Record) -> Iterator[Problem]:
    place = f"trigger {trigger.name} on {shown(trigger.table)}"
    drop = f"drop trigger {trigger.name} on {trigger.table}"
    function = _function_problem(trigger.function, row)
    if function is not None:
        yield replace(function, text=f"{place} calls another function: {function.text}")
    reasons = list(_differences(trigger, row))
    if reasons:
        text = f"{place} is not the one that handstamp makes: {', '.join(reasons)}"
        yield Problem(text=text, mend=drop, replaceable=row["ordinary"])
    if not row["enabled"]:
        enable = f"alter table {trigger.table} enable trigger {trigger.name}"
        yield Problem(text=f"{place} is disabled", mend=enable)
    elif trigger.type & ROW and row["parts"]:
        parts = ", ".join(row["parts"])
        text = f"{place} is missing or disabled in the partitions {parts}"
        yield Problem(text=text, mend=drop, replaceable=False)


def _differences(trigger: NotifyTrigger, row: asyncpg.Record) -> Iterator[str]:
    argument = trigger.argument
    if row["type"] != trigger.type or not row["ordinary"]:
        yield "it fires at other events"
    if not row["any_column"]:
        yield "it fires for some columns only"
    if _condition(row["definition"]) != canonical(trigger.condition) or row["depends"]:
        yield "its condition is another one"
    if bytes(row["arguments"]) != (b"" if argument is None else argument.encode() + b"\0"):
        yield "it names another column of ids"


def _function_problem(name: str, row: asyncpg.Record) -> Problem | None:
    place = row["place"]
    drop = f"drop function {place} cascade"
    if not row["trusted"]:
        text = (
            f"{place} belongs to {row['owner']}, a role that may not create triggers on "
            "the table: it would run code of its own with the rights of whoever writes"
        )
        return Problem(text=text, mend=drop, replaceable=False, dangerous=True)
    if row["definer"]:
        text = f"{place} runs with the rights of its owner (security definer)"
        return Problem(text=text, mend=drop, dangerous=True)
    reasons = []
    if not row["plain"] or _lines(row["body"]) != _lines(BODIES[name]):
        reasons.append("its body is another one")
    if list(row["settings"]) != [f"search_path={SEARCH_PATH}"]:
        reasons.append(f"its search path is not fixed to {SEARCH_PATH}")
    if not reasons:
        return None
    text = f"{place} is not the one that handstamp makes: {', '.join(reasons)}"
    return Problem(text=text, mend=drop)


def _lines(body: str) -> list[str]:
    return body.strip().splitlines()


def _condition(definition: str | None) -> list[str]:
    """The condition in what ``pg_get_triggerdef`` says; None for one that has just gone."""
    head, _, _ = (definition or "").rpartition(" EXECUTE FUNCTION ")
    _, when, condition = head.partition(" WHEN (")
    return canonical(condition.removesuffix(")")) if when else []


def canonical(condition: str) -> list[str]:
    """A condition as a list of words, for comparison.

    Casts are left out, for they depend on the types of the columns, and with them the
    parentheses around a single operand.
    """
    words = []
    for token in _TOKEN.finditer(condition):
        if token["cast"] or token["space"]:
            continue
        if token["quoted"] is not None and not _SAME_UNQUOTED.fullmatch(token["quoted"]):
            words.append(token[0])
        else:
            words.append(token["quoted"] or token["text"] or token[0].lower())
    return _without_needless(words)


def _without_needless(words: list[str]) -> list[str]:
    """Without the parentheses around ``old.column``, ``new.column`` or a constant."""
    kept: list[str] = []
    for word in words:
        kept.append(word)
        for size in (3, 5) if word == ")" else ():
            inner = kept[1 - size : -1]
            operand = size == 3 or (len(inner) == 3 and inner[1] == ".")
            if kept[-size:][0] == "(" and operand and not _is_call(kept[:-size]):
                kept[-size:] = inner
                break
    return kept


def _is_call(before: list[str]) -> bool:
    """Whether what follows are the arguments of a function."""
    last = before[-1] if before else ""
    return bool(re.fullmatch(r"[\w$]+", last)) and last not in _KEYWORDS
