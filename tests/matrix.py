"""Every framework, at its oldest and its newest version, on every Python, as a table.

    python3 run.py matrix                    all of it
    python3 run.py matrix py311 flask quart  these frameworks on this Python
    python3 run.py matrix oldest             the oldest version of each

A row is one environment of tox.ini. It counts the framework's own tests and those of
the example contract, by transport. A Python that is not installed is skipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".tox"
TOX = [sys.executable, "-m", "tox"]
HEADER = ("framework", "version", "Python", "own tests", "ASGI contract", "WSGI contract")
WIDTHS = (10, 9, 7, 27, 27, 27)
TELL_VERSIONS = """
import importlib.metadata, platform, sys
print(importlib.metadata.version(sys.argv[1]), platform.python_version())
"""


@dataclass(frozen=True)
class Environment:
    """One environment of tox.ini, such as py311-flask-oldest."""

    name: str

    @property
    def python(self) -> str:
        """Such as py311."""
        return self.name.split("-")[0]

    @property
    def framework(self) -> str:
        """Such as flask."""
        return self.name.split("-")[1]

    @property
    def age(self) -> str:
        """Which version of the framework."""
        return "oldest" if self.name.endswith("-oldest") else "newest"

    @property
    def words(self) -> set[str]:
        """Each word that asks for it."""
        return {self.python, self.framework, self.age}


def main(words: list[str]) -> int:
    """Run what the words ask for and print a row of each; 1 when something failed."""
    environments = listed()
    negative_cache = set(words) - {word for one in environments for word in one.words}
    if negative_cache:
        print(f"{__doc__}\nunknown: {', '.join(sorted(negative_cache))}", file=sys.stderr)
        return 2
    asked = chosen(environments, words)
    print(f"{len(asked)} environments; all they print is in {WORK / 'matrix'}\n")
    print(line(HEADER), line(["-" * width for width in WIDTHS]), sep="\n", flush=True)
    failed = [one.name for one in asked if not passes(one)]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nnone failed")
    return 1 if failed else 0


def listed() -> list[Environment]:
    """The environments of the matrix, in tox's order."""
    names = subprocess.check_output([*TOX, "list", "-d", "-q", "--no-desc"], text=True)
    return [Environment(name) for name in names.split() if "-" in name]


def chosen(environments: list[Environment], words: Collection[str]) -> list[Environment]:
    """Those with one of the words of each kind that was asked for; all without words."""
    kinds = ("python", "framework", "age")
    for kind in kinds:
        asked = set(words) & {getattr(one, kind) for one in environments}
        environments = [
            one for one in environments if getattr(one, kind) in asked or not asked
        ]
    return environments


def passes(environment: Environment) -> bool:
    """Run one environment and print its row; whether it passed or was skipped."""
    outcome = run(environment)
    if outcome == "SKIP":
        cells = [environment.framework, environment.age, dotted(environment.python)]
        print(line([*cells, "skipped: no such Python", "", ""]), flush=True)
        return True
    print(line(row(environment)), flush=True)
    return outcome == "OK"


def run(environment: Environment) -> str:
    """Run one environment: OK, FAIL or SKIP, as tox puts it."""
    name = environment.name
    report(name).unlink(missing_ok=True)
    report(name).parent.mkdir(parents=True, exist_ok=True)
    log = report(name).with_suffix(".log")
    with log.open("wb") as output:
        command = [*TOX, "run", "-e", name, "--workdir", str(WORK), "--colored", "no"]
        subprocess.call(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    verdicts = re.findall(
        rf"^  {name}: (\w+)", log.read_text("utf-8", "replace"), re.MULTILINE
    )
    return verdicts[-1] if verdicts else "FAIL"


def report(name: str) -> Path:
    """Where tox.ini has pytest write what became of each test."""
    return WORK / "matrix" / f"{name}.xml"


def row(environment: Environment) -> list[str]:
    """The cells of an environment that was run."""
    cells = [environment.framework, *versions(environment)]
    if not report(environment.name).exists():
        return [*cells, "FAILED before any test", "", ""]
    cases = ElementTree.parse(report(environment.name)).iter("testcase")
    counts = counted(cases, environment.framework)
    return [*cells, *(summary(counts[kind]) for kind in ("own", "asgi", "wsgi"))]


def versions(environment: Environment) -> list[str]:
    """The version of the framework and that of Python, as they are installed."""
    python = WORK / environment.name / "bin" / "python"
    command = [str(python), "-c", TELL_VERSIONS, environment.framework]
    try:
        return subprocess.check_output(
            command, text=True, stderr=subprocess.DEVNULL
        ).split()
    except (OSError, subprocess.CalledProcessError):
        return [environment.age, dotted(environment.python)]


def counted(
    cases: Iterable[ElementTree.Element], framework: str
) -> dict[str, Counter[str]]:
    """How many tests passed, failed and were skipped: the framework's own, and those of
    the contract over each transport."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("own", "asgi", "wsgi")}
    for case in cases:
        inside = {child.tag for child in case}
        over = re.search(rf"\[{framework}-(asgi|wsgi)-", case.get("name", ""))
        kind = over[1] if over else "own"
        if inside & {"failure", "error"}:
            counts[kind]["failed"] += 1
        else:
            counts[kind]["skipped" if "skipped" in inside else "passed"] += 1
    return counts


def summary(counts: Counter[str]) -> str:
    """The counts of one cell, the bad ones first."""
    parts = [
        f"{counts['failed']} FAILED" if counts["failed"] else "",
        f"{counts['passed']} passed" if counts["passed"] else "",
        f"{counts['skipped']} skipped" if counts["skipped"] else "",
    ]
    return ", ".join(part for part in parts if part) or "-"


def dotted(python: str) -> str:
    """py311 as 3.11."""
    return f"{python[2]}.{python[3:]}"


def line(cells: Iterable[str]) -> str:
    """One line of the table, which is Markdown too."""
    padded = (f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    return f"| {' | '.join(padded)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
