"""What `handstamp doctor` reports of a table of sessions, and of the server around it.

`infer` proposes a shape for a table, `check` asks the database, `report` turns the answers
into findings. Nothing here writes to the database. A finding holds no data of a row, only
names of tables and columns, counts and durations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is.

    DANGER: handstamp refuses the table, a login or a revocation fails, or a session that
    the application has ended stays valid. WARNING: a feature fails, or something costs time
    or safety.
    """

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    DANGER = "danger"


_ORDER = list(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``about`` is its topic in one word; ``mend`` is SQL, or empty."""

    level: Level
    about: str
    text: str
    mend: str = ""


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, the worst first, without duplicates."""
    return sorted(dict.fromkeys(findings), key=lambda finding: -_ORDER.index(finding.level))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The role, the server and the table, as the catalog has them."""

    role: str
    pid: int
    version: str
    standby: bool
    replication: str
    row_security: bool
    triggers: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How to use the table: the preset, Python to paste under ``title``, and what the table
    can then do, in words."""

    preset: str
    title: str
    python: str
    capabilities: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The whole report. ``offer`` is None if a needed column was not found; ``bound`` is
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
