"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks import hit, migrate, miss, revoke, touch, wsgi
from benchmarks.report import Report, as_json, as_text
from benchmarks.rounds import Options

BENCHMARKS: dict[str, Callable[[Options], Report]] = {
    "hit": hit.run,
    "migrate": migrate.run,
    "miss": miss.run,
    "revoke": revoke.run,
    "touch": touch.run,
    "wsgi": wsgi.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its report."""
    given = _parser().parse_args(arguments)
    report = BENCHMARKS[given.benchmark](
        Options(
            rounds=given.rounds,
            processes=given.processes,
            quick=given.quick,
            loop=given.loop,
        )
    )
    print(as_json(report) if given.json else as_text(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="all but hit use the PostgreSQL server in DATABASE_URL (in a "
        "database of their own, dropped afterwards), or start one.",
    )
    parser.add_argument("benchmark", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--rounds", type=_positive, help="how often everything is measured")
    parser.add_argument("--processes", type=_positive, help="of revoke: their number")
    parser.add_argument("--quick", action="store_true", help="little work in each round")
    parser.add_argument(
        "--loop",
        choices=["none", "asyncio"],
        default="none",
        help="hit only: step through the coroutines by hand, or on an event loop",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    main()
