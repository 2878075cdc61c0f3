"""The benchmarks run and report what they promise. Speed is not tested."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from benchmarks import hit, longest_trust
from benchmarks.listener import wait_until_listening
from benchmarks.report import Report, as_text
from benchmarks.revocation_watcher import RevocationWatcher
from benchmarks.rounds import Options, over, percentile, ratio, turns
from handstamp.engine.sessions import Sessions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REPORT_KEYS = {
    "benchmark",
    "about",
    "note",
    "environment",
    "settings",
    "rows",
    "facts",
}
HIT_KEYS = {"variant", "median_ns", "min_ns", "over_bare_ns"}
MISS_KEYS = {
    "concurrency",
    *(
        f"{side}_{figure}"
        for side in ("handstamp", "lookup", "pool")
        for figure in ("per_second", "p50_ms", "p99_ms")
    ),
    "handstamp_ratio",
    "lookup_ratio",
    "queries_per_miss",
}
MIGRATE_KEYS = {
    *("load", "requests", "failed", "per_second", "p50_ms", "p99_ms", "worst_ms"),
}
REVOKE_KEYS = {
    "way",
    "revocations",
    *(
        f"{over}_{figure}_ms"
        for over in ("all", "slowest", "closed")
        for figure in ("p50", "p99", "max")
    ),
    "call_p99_ms",
}
TOUCH_KEYS = {
    "sessions",
    "handstamp_statements",
    "handstamp_wall_us",
    "handstamp_database_us",
    "updates_statements",
    "updates_wall_us",
    "updates_database_us",
    "single_wall_us",
    "single_ratio",
    "wall_ratio",
    "database_ratio",
}
WSGI_KEYS = {
    "variant",
    "cpu_us",
    "wall_us",
    "over_bare_cpu_us",
    "over_bare_wall_us",
    "wall_p99_us",
}


def run(benchmark: str, *options: str, dsn: str | None = None) -> dict[str, Any]:
    """What ``python -m benchmarks`` prints, which must be one line of JSON."""
    command = [sys.executable, "-m", "benchmarks", benchmark, "--json", "--quick"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    if dsn is not None:
        environment["DATABASE_URL"] = dsn
    printed = subprocess.check_output(
        [*command, "--rounds", "2", *options], cwd=ROOT, env=environment, text=True
    )
    (line,) = printed.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def check(report: dict[str, Any], benchmark: str, row_keys: set[str]) -> None:
    assert set(report) == REPORT_KEYS
    assert benchmark == report["benchmark"]
    assert {"Python", "PostgreSQL", "asyncpg", "cores"} <= set(report["environment"])
    assert "ratio" in report["note"]
    assert all(row_keys == set(row) for row in report["rows"])


@pytest.mark.parametrize("loop", ["none", "asyncio"])
def test_every_request_of_hit_is_a_hit_and_none_asks_the_store(loop: str) -> None:
    """The benchmark of hits measures hits, by hand and on a loop."""
    report = run("hit", "--loop", loop)
    check(report, "hit", HIT_KEYS)
    facts = report["facts"]
    assert (facts["requests"], facts["hits"], facts["queries"]) == (200, 200, 0)
    assert {
        "times_the_floor",
        "of_SessionMiddleware",
        "asked_times_the_floor",
        "asked_of_SessionMiddleware",
        "uuid, of ulid",
        "supabase, tokens only, of ulid",
        "supabase, with the user, of ulid",
        "uuid, times_the_floor",
        "supabase, tokens only, times_the_floor",
        "supabase, with the user, times_the_floor",
        "reads_again_per_session_and_minute",
        "reads_again_per_query",
    } <= set(facts)
    others = ["uuid", "supabase, tokens only", "supabase, with the user"]
    assert [row["variant"] for row in report["rows"]] == [
        "bare app",
        "floor",
        "handstamp",
        "handstamp, asked",
        "SessionMiddleware",
        *(f"floor, {name}" for name in others),
        *others,
    ]


async def test_the_reads_that_longest_trust_costs_are_counted() -> None:
    """Less than twice a minute for a session in use, and several share a query."""
    counted = await longest_trust.count_reads(quick=True)
    assert 1 <= counted["reads_again_per_session_and_minute"] <= 2
    assert counted["reads_again_per_query"] > 1


def test_hit_refuses_a_shape_whose_requests_were_no_hits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the shapes is counted by itself."""
    measure = hit._measure

    def forgetful(variants: list[hit.Variant], *rest: Any) -> dict[str, list[float]]:
        costs = measure(variants, *rest)
        variants[-1].app._options.sessions._authenticator.hits -= 1  # type: ignore[attr-defined]
        return costs

    monkeypatch.setattr(hit, "_measure", forgetful)
    with pytest.raises(RuntimeError, match="with the user: 99 hits in 100 requests"):
        hit.run(Options(rounds=1, quick=True, loop="none"))


def test_hit_refuses_to_report_requests_that_were_no_hits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session that left the cache stops the benchmark instead of flattering it."""
    measure = hit._measure

    def forgetful(variants: list[hit.Variant], *rest: Any) -> dict[str, list[float]]:
        variants[2].app._options.sessions._state.cache.doubt()  # type: ignore[attr-defined]
        return measure(variants, *rest)

    monkeypatch.setattr(hit, "_measure", forgetful)
    with pytest.raises(RuntimeError, match="99 hits, 1 queries in 100 requests"):
        hit.run(Options(rounds=1, quick=True, loop="asyncio"))


async def test_the_variants_really_do_what_they_are_named_after() -> None:
    """Starlette finds its session and ours finds its user in the scopes of hit."""
    sessions = Sessions(hit.MemoryStore(), secret=hit.SECRET, policy=hit.POLICY)
    async with sessions:
        *_, asked, starlette = await hit._variants(sessions)
        scopes = {v.name: hit._scope(v.cookie) for v in (asked, starlette)}
        for variant in (asked, starlette):
            await variant.app(scopes[variant.name], hit.receive, hit.send)
    assert scopes["handstamp, asked"]["handstamp"].user_id == hit.USER_ID
    assert scopes["SessionMiddleware"]["session"] == {"user_id": hit.USER_ID}


def test_a_variant_that_waits_is_an_error() -> None:
    """Stepping by hand accepts no application that suspends."""

    async def waiting(*_: object) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="suspended"):
        hit.by_hand(waiting, [{}])


async def test_every_miss_asks_the_table_and_nothing_is_left_behind(
    empty_dsn: str,
) -> None:
    """The benchmark of misses measures misses, in a database that is gone afterwards."""
    report = run("miss", dsn=empty_dsn)
    check(report, "miss", MISS_KEYS)
    assert [row["concurrency"] for row in report["rows"]] == [1, 8, 64, 512]
    assert all(0 < row["queries_per_miss"] <= 1 for row in report["rows"])
    facts = report["facts"]
    assert (facts["hits"], facts["misses"] >= 4 * 2 * 512) == (0, True)
    assert await leftovers(empty_dsn) == []


async def test_misses_that_come_together_share_a_query(empty_dsn: str) -> None:
    """One at a time asks once each; 512 at a time ask far less often."""
    single, *_, crowd = run("miss", dsn=empty_dsn)["rows"]
    assert single["queries_per_miss"] == 1.0
    assert crowd["queries_per_miss"] < 0.1


async def test_revoke_measures_every_revocation_and_accepts_no_session_afterwards(
    empty_dsn: str,
) -> None:
    """Each way is measured in every process, and what was refused stays refused."""
    report = run("revoke", "--processes", "2", dsn=empty_dsn)
    check(report, "revoke", REVOKE_KEYS)
    ways = {row["way"]: row["revocations"] for row in report["rows"]}
    assert ways == {"Sessions.revoke": 2, "plain SQL": 2}
    assert report["settings"] == {"rounds": 2, "processes": 2}
    assert report["facts"] == {"revocations": 4, "accepted_after_a_refusal": 0}
    assert await leftovers(empty_dsn) == []


async def test_a_watcher_counts_the_accepted_sessions() -> None:
    """A valid session is counted, a revoked one is not."""
    sessions = Sessions(hit.MemoryStore(), secret=hit.SECRET, policy=hit.POLICY)
    async with sessions:
        await wait_until_listening(sessions)
        issued = [await sessions.create(f"user{n}") for n in range(3)]
        tokens = [one.session_token.encode() for one in issued]
        watcher = RevocationWatcher(sessions, tokens)
        await watcher.fill_cache()
        await sessions.revoke(issued[1].session.id)
        assert await watcher.count_accepted() == 2


async def test_a_watcher_refuses_to_start_with_a_revoked_session() -> None:
    """What was refused before its revocation would flatter the figures."""
    sessions = Sessions(hit.MemoryStore(), secret=hit.SECRET, policy=hit.POLICY)
    async with sessions:
        await wait_until_listening(sessions)
        issued = await sessions.create("user")
        await sessions.revoke(issued.session.id)
        watcher = RevocationWatcher(sessions, [issued.session_token.encode()])
        with pytest.raises(RuntimeError, match="before it was revoked"):
            await watcher.fill_cache()
        with pytest.raises(RuntimeError, match="left the cache"):
            await watcher.wait_for_refusal(0)


async def test_a_benchmark_refuses_a_database_without_the_trigger(dsn: str) -> None:
    """A benchmark of notifications does not run where some writers do not notify."""
    async with Sessions(dsn, secret=hit.SECRET) as sessions:
        with pytest.raises(RuntimeError, match="no trigger"):
            await wait_until_listening(sessions)


async def test_a_flush_is_one_statement_whatever_the_number_of_sessions(
    empty_dsn: str,
) -> None:
    """One statement a flush, and the activity of every session is written."""
    report = run("touch", dsn=empty_dsn)
    check(report, "touch", TOUCH_KEYS)
    assert [row["sessions"] for row in report["rows"]] == [1, 10, 100]
    facts = report["facts"]
    assert facts["flushes"] == facts["queries"]
    counted = {row["handstamp_statements"] for row in report["rows"]}
    assert counted in ({1.0}, {None})
    assert await leftovers(empty_dsn) == []


async def test_wsgi_measures_hits_beside_others_that_do_the_same(empty_dsn: str) -> None:
    """Every hit is one, Flask finds its session and Django its user, misses are misses."""
    pytest.importorskip("psycopg")
    report = run("wsgi", dsn=empty_dsn)
    check(report, "wsgi", WSGI_KEYS)
    assert [row["variant"] for row in report["rows"]] == [
        "bare app",
        "floor",
        "handstamp",
        "handstamp, asked",
        "Flask, session",
        "Django, bare",
        "Django, request.user",
        "handstamp, miss",
        "psycopg, query",
        "asyncpg, query",
    ]
    assert (report["facts"]["hits"], report["facts"]["misses"]) == (80, 40)
    assert await leftovers(empty_dsn) == []


async def leftovers(dsn: str) -> list[str]:
    """The databases of benchmarks on this server, and tables in the given one."""
    connection = await asyncpg.connect(dsn)
    try:
        names = await connection.fetch(
            "select datname from pg_database where datname like 'handstamp_bench%'"
            " union all select relname from pg_class where relname = 'user_sessions'"
        )
    finally:
        await connection.close()
    return [name for (name,) in names]


def test_turns_begin_with_another_each_time() -> None:
    """Everything is measured once in each turn, and nobody is always first."""
    assert list(turns("abc", 3)) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_ratios_are_taken_pair_by_pair() -> None:
    """The median of the ratios counts, neither the ratio of medians nor that of sums."""
    above, below = [2.0, 10.0, 30.0], [1.0, 2.0, 30.0]
    assert ratio(above, below) == 2.0
    assert over(above, below) == [1.0, 8.0, 0.0]


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 51), (99, 100), (100, 100)])
def test_percentiles(percent: float, value: float) -> None:
    """A percentile is one of the values, found by its rank."""
    assert value == percentile(list(map(float, range(1, 101))), percent)


def test_the_text_lines_up_and_reminds_of_the_ratios() -> None:
    """The table is plain text with a heading, and the reminder comes last."""
    rows = [{"name": "x", "cost_ns": 1234.5}, {"name": "long", "cost_ns": None}]
    text = as_text(
        Report(
            benchmark="b", about="a", environment={}, settings={}, rows=rows, facts={"f": 1}
        )
    )
    lines = text.splitlines()
    assert lines[4:7] == ["name  cost ns", "x       1,234", "long        -"]
    assert lines[-1].startswith("Compare the ratios")


async def test_no_request_fails_while_tokens_are_migrated(empty_dsn: str) -> None:
    """And no plaintext token is left."""
    report = run("migrate", dsn=empty_dsn)
    check(report, "migrate", MIGRATE_KEYS)
    assert [row["load"] for row in report["rows"]] == ["before", "migrating"]
    assert [row["failed"] for row in report["rows"]] == [0, 0]
    assert all(row["requests"] > 0 for row in report["rows"])
    assert (report["facts"]["rows"], report["facts"]["left_in_plaintext"]) == (20_000, 0)
    assert await leftovers(empty_dsn) == []
