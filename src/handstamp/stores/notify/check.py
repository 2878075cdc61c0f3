"""Whether the trigger in a database is the one that handstamp makes.

Rule 1. A name proves nothing. Of a trigger this compares the table, the events, the
condition, the arguments, whether it is enabled, in every partition too, and its function.
Of a function it compares the body, the language, the search path, and that it runs with
the rights of the writer.
Rule 2. The owner of a function can replace it at any time, and it runs with the rights of
everybody who writes to the table. So the owner must be a role that may create triggers on
that table: its owner, a superuser, or a role with that privilege. Such a role could do as
much without the function; any other owner would gain rights.
Rule 3. Triggers are not complete for a foreign table, or for a table that inherits from
another one: there are writes that fire no trigger.
Rule 4. A trigger that was changed and changed back between two checks was different in
between, so that counts as a change (:func:`read_version`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg

from handstamp.stores.connection import Connection
from handstamp.stores.notify.sql import (
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

# Takes no lock on a table, so it never waits for a statement that changes one.
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
    """Why a trigger or a function is not relied on, in words.

    ``mend`` is the SQL that removes it or switches it on. If it is ``replaceable``, the
    script that creates the trigger is enough. ``dangerous``: a role without rights on the
    table decides what runs with the rights of every writer.
    """

    text: str
    mend: str = ""
    replaceable: bool = True
    dangerous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found of the triggers that should be there; ``absent`` if nothing was."""

    missing: tuple[NotifyTrigger, ...]
    problems: tuple[Problem, ...]
    absent: bool

    @property
    def complete(self) -> bool:
        """Whether every writer notifies, as far as triggers can make it."""
        return not self.missing and not self.problems

    @property
    def lacks(self) -> list[str]:
        """What is wrong, in words."""
        return [problem.text for problem in self.problems] + [
            f"there is no trigger {trigger.name} on {shown(trigger.table)}"
            for trigger in self.missing
        ]


async def read_version(connection: Connection, triggers: Sequence[NotifyTrigger]) -> str:
    """Returns a text that differs from the last one whenever anything about these triggers
    may have changed; empty where there is no table."""
    names = [trigger.name for trigger in triggers]
    version = await connection.fetchval(_VERSION, tables_of(triggers), names)
    return str(version)


async def check_triggers(
    connection: Connection, triggers: Sequence[NotifyTrigger]
) -> Checked:
    """Compare the triggers in the catalog with those that should be there."""
    names = [trigger.name for trigger in triggers]
    rows = await connection.fetch(_TRIGGERS, tables_of(triggers), names)
    found = {(row["table"], row["name"]): row for row in rows if row["name"]}
    problems, missing = [], []
    for row in rows:
        table = shown(row["table"])
        if not row["holds_rows"]:
            problems.append(Problem(text=f"{table} is no table with rows of its own"))
        elif row["elsewhere"]:
            text = (
                f"other tables inherit from {table}, or hold a part of it on another server"
            )
            problems.append(Problem(text=text))
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
    """The functions with these names that exist, and the problem of each or None.

    Looks in ``schema``, or where a call without a schema would find them.
    """
    names = functions_of(triggers)
    rows = await connection.fetch(_FUNCTIONS, tables_of(triggers), names, schema)
    return {row["name"]: _function_problem(row["name"], row) for row in rows}


def shown(table: str) -> str:
    """The name of a table as people write it."""
    return table.replace('"', "")


def _trigger_problems(trigger: NotifyTrigger, row: asyncpg.Record) -> Iterator[Problem]:
    place = f"trigger {trigger.name} on {shown(trigger.table)}"
    drop = f"drop trigger {trigger.name} on {trigger.table}"
    function = _function_problem(trigger.function, row)
    if function is not None:
        yield replace(function, text=f"{place} calls another function: {function.text}")
    argument = "" if trigger.argument is None else f"{trigger.argument}\0"
    # The definition is None for a trigger that was dropped at this moment.
    head, _, _ = (row["definition"] or "").rpartition(" EXECUTE FUNCTION ")
    condition = canonical(head.partition(" WHEN (")[2].removesuffix(")"))
    differences = {
        "it fires at other events": row["type"] != trigger.type or not row["ordinary"],
        "it fires for some columns only": not row["any_column"],
        "its condition is another one": condition != canonical(trigger.condition)
        or row["depends"],
        "it names another column of ids": bytes(row["arguments"]) != argument.encode(),
    }
    reasons = [reason for reason, differs in differences.items() if differs]
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


def _function_problem(name: str, row: asyncpg.Record) -> Problem | None:
    place = row["place"]
    drop = f"drop function {place} cascade"
    if not row["trusted"]:
        text = (
            f"{place} belongs to {row['owner']}, a role that may not create triggers on "
            "the table: it would run code of its own with the rights of every writer"
        )
        return Problem(text=text, mend=drop, replaceable=False, dangerous=True)
    if row["definer"]:
        text = f"{place} runs with the rights of its owner (security definer)"
        return Problem(text=text, mend=drop, dangerous=True)
    reasons = []
    body, ours = (text.strip().splitlines() for text in (row["body"], BODIES[name]))
    if not row["plain"] or body != ours:
        reasons.append("its body is another one")
    if list(row["settings"]) != [f"search_path={SEARCH_PATH}"]:
        reasons.append(f"its search path is not fixed to {SEARCH_PATH}")
    if not reasons:
        return None
    text = f"{place} is not the one that handstamp makes: {', '.join(reasons)}"
    return Problem(text=text, mend=drop)


def canonical(condition: str) -> list[str]:
    """A condition as a list of words, for comparison.

    Casts are left out, because they depend on the types of the columns. So are the
    parentheses around ``old.column``, ``new.column`` or a constant, which come with them.
    """
    words: list[str] = []
    for token in _TOKEN.finditer(condition):
        if token["cast"] or token["space"]:
            continue
        if token["quoted"] is not None and not _SAME_UNQUOTED.fullmatch(token["quoted"]):
            words.append(token[0])
        else:
            words.append(token["quoted"] or token["text"] or token[0].lower())
        for size in (3, 5) if words[-1] == ")" else ():
            operand = words[1 - size : -1]
            single = size == 3 or (len(operand) == 3 and operand[1] == ".")
            opened = len(words) >= size and words[-size] == "("
            if opened and single and not _ends_with_function(words[:-size]):
                words[-size:] = operand
                break
    return words


def _ends_with_function(words: list[str]) -> bool:
    """Whether parentheses after these words are the arguments of a function."""
    last = words[-1] if words else ""
    return bool(re.fullmatch(r"[\w$]+", last)) and last not in _KEYWORDS
