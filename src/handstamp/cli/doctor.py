"""`handstamp doctor`: what handstamp can do with a table, and what stands in the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.text import Text

from handstamp.cli._shared import complain, connected, reason
from handstamp.doctor.check import candidates
from handstamp.doctor.columns import Finding, Level
from handstamp.doctor.infer import PRESETS
from handstamp.doctor.report import Diagnosis, diagnose, in_order
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS
from handstamp.stores.shapes import AtRest, TableShape
from handstamp.supabase.doctor import diagnose_supabase

if TYPE_CHECKING:
    from handstamp.cli._shared import Connection

_STYLES = {
    Level.OK: "green",
    Level.NOTICE: "cyan",
    Level.WARNING: "yellow",
    Level.DANGER: "bold red",
}
_SUPABASE = "supabase"
_AUTH = "auth.sessions"


def doctor(
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="DATABASE_URL",
            metavar="URL",
            help="The database, as your app reaches it and with its role: "
            "postgresql://user:password@host:port/name",
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="The table of sessions; else it is looked for.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="The preset to start from: ulid or uuid, else the nearest. Or supabase."
        ),
    ] = None,
    listen_dsn: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the bus listens, if --dsn is a pooler."),
    ] = None,
    at_rest: Annotated[
        str | None,
        typer.Option(help="How tokens are stored, if you know: digest, prefixed or plain."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings fail, too; for CI.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Look at a table of sessions: propose its shape, and find what is wrong with it.

    Changes nothing. Exit status: 0 when all is well, 1 when there are dangers, 2 when
    it could not look.
    """
    if not dsn:
        raise complain("which database? give --dsn or set DATABASE_URL", status=2)
    shapes = (*PRESETS, _SUPABASE)
    if shape is not None and shape not in shapes:
        raise typer.BadParameter(f"there is only: {', '.join(shapes)}")
    if at_rest is not None and at_rest not in get_args(AtRest):
        raise typer.BadParameter(f"there is only: {', '.join(get_args(AtRest))}")
    found = asyncio.run(
        _look(dsn, listen_dsn or dsn, table, shape, cast("AtRest | None", at_rest))
    )
    failed = found.worst() is Level.DANGER or (strict and found.worst() is Level.WARNING)
    if as_json:
        typer.echo(json.dumps(_as_dict(found, status=int(failed)), ensure_ascii=False))
    else:
        _show(found)
    raise typer.Exit(int(failed))


async def _look(
    dsn: str,
    listen_dsn: str,
    table: str | None,
    preset: str | None,
    at_rest: AtRest | None,
) -> Diagnosis:
    async with connected(dsn) as connection, connected(listen_dsn) as listening:
        try:
            name = table or await _found(connection, preset)
            TableShape(table=name)  # only a name that may stand in SQL
            if preset == _SUPABASE or (preset is None and name.lower() == _AUTH):
                schema = _schema_of(name)
                return await diagnose_supabase(connection, listening, schema)
            return await diagnose(connection, listening, name, preset, at_rest)
        except ConfigError as error:
            raise complain(f"could not look: {error}", status=2) from None
        except FAULTS as error:
            raise complain(f"could not look: {reason(error)}", status=2) from None


async def _found(connection: Connection, preset: str | None) -> str:
    return _AUTH if preset == _SUPABASE else _only(await candidates(connection))


def _schema_of(name: str) -> str:
    """The schema of a table of Supabase Auth, which is called sessions in any of them."""
    if name.lower() == _AUTH:
        name = _AUTH
    schema, _, table = name.rpartition(".")
    if not schema or table != "sessions":
        problem = f"--shape {_SUPABASE} looks at the sessions of a schema, as in {_AUTH}"
        raise complain(f"{problem}, and not at {name}", status=2)
    return schema


def _only(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        problem = "no table looks like one of sessions: name it with --table"
    else:
        problem = f"which table? name it with --table: {', '.join(names)}"
    raise complain(problem, status=2)


def _as_dict(found: Diagnosis, *, status: int) -> dict[str, object]:
    offer = found.offer
    return {
        "table": found.table,
        "role": found.facts.role,
        "server": found.facts.version,
        "preset": None if offer is None else offer.preset,
        "shape": None if offer is None else offer.python,
        "capabilities": {} if offer is None else dict(offer.capabilities),
        "bound": found.bound,
        "findings": [
            {"level": f.level, "about": f.about, "text": f.text, "mend": f.mend}
            for f in in_order(found.findings)
        ],
        "status": status,
    }


def _show(found: Diagnosis) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in _lines(found):
        console.print(line)


def _lines(found: Diagnosis) -> Iterator[Text]:
    facts, offer = found.facts, found.offer
    yield Text(f"table {found.table}, PostgreSQL {facts.version}, role {facts.role}")
    if offer is not None:
        yield Text(f"\n{offer.title}:\n")
        yield from map(Text, offer.python.splitlines())
        yield Text("\nWhat this table can do:\n")
        for words, able in offer.capabilities.items():
            yield Text(f"  {'yes' if able else 'no ':<3}  {words}", "" if able else "dim")
    yield Text("\nFindings:\n")
    for finding in in_order(found.findings):
        yield from _finding(finding)
    yield Text(f"\n{_sum(found)}")


def _finding(finding: Finding) -> Iterator[Text]:
    level = Text(f"  {finding.level:<7}", style=_STYLES[finding.level])
    yield level + Text(f"  {finding.about}: {finding.text}")
    if finding.mend:
        lines = f"{finding.mend};".splitlines()
        yield from (Text(f"             {line}".rstrip(), "dim") for line in lines)


def _sum(found: Diagnosis) -> str:
    levels = [finding.level for finding in in_order(found.findings)]
    counts = (f"{levels.count(level)} {level}" for level in reversed(Level))
    return ", ".join(counts)
