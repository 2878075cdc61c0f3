"""Whether every writer of a table is heard, in words for the one who can change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.lanes import Connection
from handstamp.stores.notify_check import (
    Checked,
    Problem,
    check_functions,
    check_triggers,
)
from handstamp.stores.notify_trigger import NotifyTrigger, script


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """The triggers that ought to be there, what was found of them, and what speaks against
    functions of their names that a call would find."""

    triggers: Sequence[NotifyTrigger]
    checked: Checked
    functions: Sequence[Problem]

    @property
    def absent(self) -> bool:
        """Whether nothing of it is there."""
        return self.checked.absent and not self.functions

    @property
    def lacks(self) -> list[str]:
        """What is wrong, in words."""
        return [*(problem.text for problem in self._others), *self.checked.lacks]

    @property
    def dangerous(self) -> bool:
        """Whether somebody else's code runs, or would."""
        return any(problem.dangerous for problem in self._problems)

    @property
    def mend(self) -> str:
        """The script that makes all of it, and may be run again."""
        before = [each.mend for each in self._problems if not each.replaceable]
        return script(self.triggers, before=list(dict.fromkeys(before)))

    @property
    def _problems(self) -> list[Problem]:
        return [*self._others, *self.checked.problems]

    @property
    def _others(self) -> list[Problem]:
        """Functions that no trigger calls yet; the others are told with their triggers."""
        called = {problem.mend for problem in self.checked.problems}
        return [problem for problem in self.functions if problem.mend not in called]


async def listen_for(connection: Connection, triggers: Sequence[NotifyTrigger]) -> Hearing:
    """Look at the triggers, and at the functions of their names."""
    functions = await check_functions(connection, triggers)
    return Hearing(
        triggers=triggers,
        checked=await check_triggers(connection, triggers),
        functions=[problem for problem in functions.values() if problem is not None],
    )


def trigger_findings(hearing: Hearing, *, complete: str, absent: str) -> list[Finding]:
    """What there is to say: ``complete`` and ``absent`` are the sentences for all and for
    nothing of it."""
    if not hearing.lacks:
        return [Finding(Level.OK, "trigger", complete)]
    if hearing.absent:
        return [Finding(Level.NOTICE, "trigger", absent, hearing.mend)]
    level = Level.DANGER if hearing.dangerous else Level.WARNING
    text = "the trigger is not complete, so handstamp does not rely on it"
    return [Finding(level, "trigger", f"{text}: {'; '.join(hearing.lacks)}", hearing.mend)]
