"""What an examination of a table found: a level, a place, a sentence, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. With a danger handstamp refuses the table, or sessions would live
    that your own code has ended; a warning costs a feature or time."""

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    DANGER = "danger"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``about`` is a word for a group of them; ``mend`` is SQL, or empty.

    None of it is data of a row: names of tables and columns, counts and durations.
    """

    level: Level
    about: str
    text: str
    mend: str = ""
