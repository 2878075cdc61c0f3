"""The report of a benchmark, as a table of text or as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOTE = "Compare the ratios within one run; the absolute figures belong to the machine."

Value = str | int | float | None
Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of one benchmark: rows of a table, and single facts."""

    benchmark: str
    about: str
    environment: Row
    settings: Row
    rows: Sequence[Row]
    facts: Row


def as_json(report: Report) -> str:
    """The report on one line."""
    return json.dumps(
        {
            "benchmark": report.benchmark,
            "about": report.about,
            "note": NOTE,
            "environment": report.environment,
            "settings": report.settings,
            "rows": report.rows,
            "facts": report.facts,
        },
        ensure_ascii=False,
    )


def as_text(report: Report) -> str:
    """The report as plain text."""
    return "\n".join(
        [
            f"{report.benchmark}: {report.about}",
            _listed(report.environment),
            _listed(report.settings),
            "",
            *_table(report.rows),
            "",
            *_facts(report.facts),
            "",
            NOTE,
        ]
    )


def _listed(row: Row) -> str:
    return ", ".join(f"{_words(key)} {_shown(value)}" for key, value in row.items())


def _facts(facts: Row) -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"{_words(key):<{width}}  {_shown(value)}" for key, value in facts.items()]


def _table(rows: Sequence[Row]) -> list[str]:
    keys = list(rows[0])
    cells = [[_words(key) for key in keys], *([_shown(r[k]) for k in keys] for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    texts = [isinstance(rows[0][key], str) for key in keys]
    return ["  ".join(map(_aligned, line, widths, texts)).rstrip() for line in cells]


def _aligned(cell: str, width: int, is_text: bool) -> str:
    return cell.ljust(width) if is_text else cell.rjust(width)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"
    return f"{value:,}" if isinstance(value, int) else value
