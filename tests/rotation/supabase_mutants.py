"""Bugs planted in the rules of Supabase Auth: in a judgement, a statement or an event."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from handstamp.supabase import refresh as v1
from handstamp.supabase import refresh as v2
from handstamp.supabase import refresh as work
from handstamp.supabase import rules as supabase_rotation
from handstamp.supabase import rules as supabase_rules
from handstamp.supabase import sql as statements
from handstamp.supabase.authenticate import SupabaseAuthenticator
from handstamp.supabase.rules import Count, Misused, Swap
from tests.rotation.supabase_machine import Deployment
from tests.rotation.supabase_stage import SETTINGS
from tests.rotation.worlds import patched

AGES = timedelta(days=1000)
BY_NAME = {settings.name: settings for settings in SETTINGS}
TEN = BY_NAME["ten"]
ROWS, UPGRADING, COUNTERS = (TEN, 0, 0), (TEN, 0, 2), (TEN, 2, 0)
LIMITED = BY_NAME["limited"], 2, 0


@dataclass(frozen=True, kw_only=True)
class SupabaseMutant:
    """A planted bug, its symptom, and the operations that can find it."""

    name: str
    story: str
    deployment: Deployment
    patch: Callable[[], AbstractContextManager[None]]


_judge_v1 = v1.judge_v1
_judge_v2 = v2.judge_v2
_upgraded = v1._upgraded
_limits = supabase_rules._limits


def _one_more(session: Any, counter: int, rules: Any, now: Any) -> Any:
    verdict = _judge_v2(session, counter, rules, now)
    if isinstance(verdict, Count) and verdict.reused:
        return replace(verdict, counter=verdict.counter + 1)
    return verdict


def _lenient_v1(token: Any, active: Any, rules: Any, now: Any) -> Any:
    return _judge_v1(token, active, replace(rules, reuse_interval=AGES), now)


def _lenient_v2(session: Any, counter: int, rules: Any, now: Any) -> Any:
    return _judge_v2(session, counter, replace(rules, reuse_interval=AGES), now)


def _strict_v1(token: Any, active: Any, rules: Any, now: Any) -> Any:
    verdict = _judge_v1(token, active, rules, now)
    late = token.revoked and now - token.updated_at >= rules.reuse_interval
    return Misused(ends=True) if isinstance(verdict, Swap) and late else verdict


def _no_timebox(session: Any, rules: Any) -> Any:
    return _limits(session, replace(rules, timebox=None))


def _endless_v2(session: Any, counter: int, rules: Any, now: Any) -> Any:
    verdict = _judge_v2(session, counter, rules, now)
    return replace(verdict, ends=False) if isinstance(verdict, Misused) else verdict


def _counting_anew(work: Any, session: Any) -> Any:
    sealed, _, rest = _upgraded(work, replace(session, key=None, counter=None))
    return sealed, 0, rest


def _statement(name: str, old: str, new: str) -> Callable[[], AbstractContextManager[None]]:
    text = getattr(statements, name)
    assert old in text
    return lambda: patched(statements, name, text.replace(old, new))


def _rule(target: Any, name: str, value: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: patched(target, name, value)


SUPABASE_MUTANTS = (
    SupabaseMutant(
        name="no_parent",
        deployment=ROWS,
        story="a lost answer signs its browser out",
        patch=_rule(supabase_rotation, "_is_parent", lambda token, active: False),
    ),
    SupabaseMutant(
        name="one_more",
        deployment=COUNTERS,
        story="a lost answer is answered with a step of its own",
        patch=_rule(v2, "judge_v2", _one_more),
    ),
    SupabaseMutant(
        name="old_rows_for_ever",
        deployment=ROWS,
        story="a row of long ago opens a session",
        patch=_rule(v1, "judge_v1", _lenient_v1),
    ),
    SupabaseMutant(
        name="old_counters_for_ever",
        deployment=COUNTERS,
        story="a counter of long ago opens a session",
        patch=_rule(v2, "judge_v2", _lenient_v2),
    ),
    SupabaseMutant(
        name="end_excluded",
        deployment=(BY_NAME["defaults"], 0, 0),
        story="the interval of a row is over a moment too early",
        patch=_rule(v1, "judge_v1", _strict_v1),
    ),
    SupabaseMutant(
        name="nothing_ends",
        deployment=COUNTERS,
        story="a stolen counter is refused, and the thief goes on with the next",
        patch=_rule(v2, "judge_v2", _endless_v2),
    ),
    SupabaseMutant(
        name="nobody_is_told",
        deployment=ROWS,
        story="a misuse ends a session, and there is no event",
        patch=_rule(SupabaseAuthenticator, "_report_replay", lambda *_: None),
    ),
    SupabaseMutant(
        name="bans_overlooked",
        deployment=COUNTERS,
        story="a banned user's tokens are renewed",
        patch=_rule(work, "judge_user", lambda session, now: None),
    ),
    SupabaseMutant(
        name="no_timebox",
        deployment=LIMITED,
        story="a session that refreshes in time never ends",
        patch=_rule(supabase_rules, "_limits", _no_timebox),
    ),
    SupabaseMutant(
        name="counting_anew",
        deployment=UPGRADING,
        story="a row that is shown again after its upgrade starts another count",
        patch=_rule(v1, "_upgraded", _counting_anew),
    ),
    SupabaseMutant(
        name="family_spared",
        deployment=ROWS,
        story="a misused row revokes itself, and not those that came of it",
        patch=_statement("_REVOKE_FAMILY", "revoked is false", "revoked is null"),
    ),
    SupabaseMutant(
        name="window_stands",
        deployment=ROWS,
        story="the interval of a row is counted from its first use",
        patch=_statement(
            "_SWAP",
            "revoked = true, updated_at = now()",
            "revoked = true, updated_at = case when t.revoked then t.updated_at"
            " else now() end",
        ),
    ),
)
