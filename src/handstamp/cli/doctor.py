"""`handstamp doctor`: what handstamp can do with a table, and what is wrong with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.text import Text

from handstamp.cli.app import app, connected, fail, reason, required
from handstamp.doctor import Diagnosis, Level, in_order
from handstamp.doctor.check import candidates
from handstamp.doctor.infer import PRESETS
from handstamp.doctor.report import diagnose
from handstamp.errors import ConfigError
from handstamp.stores.connection import FAULTS, Connection
from handstamp.stores.shapes import AtRest, TableShape
from handstamp.supabase.doctor import diagnose_supabase

_STYLES = {
    Level.OK: "green",
    Level.NOTICE: "cyan",
    Level.WARNING: "yellow",
    Level.DANGER: "bold red",
}
_SUPABASE = "supabase"
_AUTH = "auth.sessions"


@app.command()
def doctor(
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="DATABASE_URL",
            metavar="URL",
            help="The database, with the address and the role that your app uses: "
            "postgresql://user:password@host:port/name",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="The table of sessions, if there are several."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="The preset to start from: ulid or uuid, without it the most similar one;"
            " or supabase."
        ),
    ] = None,
    listen_dsn: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The address for LISTEN, if --dsn is that of a pooler."
        ),
    ] = None,
    at_rest: Annotated[
        str | None,
        typer.Option(help="How tokens are stored, if you know: digest, prefixed or plain."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on warnings too, for CI.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine a table of sessions: propose its shape, and find what is wrong with it.

    Changes nothing. Exit status: 0 if there is no danger, 1 if there is one, 2 if the table
    could not be examined.
    """
    dsn = required(dsn)
    shapes = (*PRESETS, _SUPABASE)
    if shape is not None and shape not in shapes:
        raise typer.BadParameter(f"choose one of: {', '.join(shapes)}")
    if at_rest is not None and at_rest not in get_args(AtRest):
        raise typer.BadParameter(f"choose one of: {', '.join(get_args(AtRest))}")
    diagnosis = asyncio.run(
        _examine(dsn, listen_dsn or dsn, table, shape, cast("AtRest | None", at_rest))
    )
    worst = diagnosis.worst()
    failed = worst is Level.DANGER or (strict and worst is Level.WARNING)
    if as_json:
        typer.echo(json.dumps(_as_dict(diagnosis, status=int(failed)), ensure_ascii=False))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for line in _lines(diagnosis):
            console.print(line)
    raise typer.Exit(int(failed))


async def _examine(
    dsn: str,
    listen_dsn: str,
    table: str | None,
    preset: str | None,
    at_rest: AtRest | None,
) -> Diagnosis:
    async with connected(dsn) as connection, connected(listen_dsn) as listening:
        try:
            name = table or await _find_table(connection, preset)
            TableShape(table=name)  # refuses a name that must not be in SQL
            if preset == _SUPABASE or (preset is None and name.lower() == _AUTH):
                schema = _schema_of(_AUTH if name.lower() == _AUTH else name)
                return await diagnose_supabase(connection, listening, schema)
            return await diagnose(connection, listening, name, preset, at_rest)
        except ConfigError as error:
            raise fail(f"could not examine the table: {error}", status=2) from None
        except FAULTS as error:
            raise fail(f"could not examine the table: {reason(error)}", status=2) from None


async def _find_table(connection: Connection, preset: str | None) -> str:
    """The only table that looks like a table of sessions. Raises :class:`typer.Exit`."""
    names = [_AUTH] if preset == _SUPABASE else await candidates(connection)
    if len(names) == 1:
        return names[0]
    if names:
        problem = f"which table? name it with --table: {', '.join(names)}"
    else:
        problem = "no table looks like a table of sessions: name it with --table"
    raise fail(problem, status=2)


def _schema_of(name: str) -> str:
    """The schema of a table of Supabase Auth. Raises :class:`typer.Exit`."""
    schema, _, table = name.rpartition(".")
    if not schema or table != "sessions":
        problem = f"--shape {_SUPABASE} examines the table sessions of a schema, as {_AUTH}"
        raise fail(f"{problem}, and not {name}", status=2)
    return schema


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
    findings = in_order(found.findings)
    for finding in findings:
        level = Text(f"  {finding.level:<7}", style=_STYLES[finding.level])
        yield level + Text(f"  {finding.about}: {finding.text}")
        fix = f"{finding.mend};".splitlines() if finding.mend else []
        yield from (Text(f"             {line}".rstrip(), "dim") for line in fix)
    levels = [finding.level for finding in findings]
    counts = (f"{levels.count(level)} {level}" for level in reversed(Level))
    yield Text(f"\n{', '.join(counts)}")
