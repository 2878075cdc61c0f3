"""Two commands for a fresh clone, and three for those who work on it.

    python3 run.py demo  [options]       the demo, on a PostgreSQL of its own
    python3 run.py test  [pytest args]   the quick tests, on a PostgreSQL of their own
    python3 run.py test  --all           every test: real servers, faults, a browser
    python3 run.py check                 formatting, lint, types and the package
    python3 run.py bench [options]       the benchmarks
    python3 run.py matrix [words]        each framework, oldest and newest, on each Python

Needs Python 3.11 or newer and nothing else. What a command needs is installed
into .venv beside this file, once: the next run starts at once. The tests use the
server in DATABASE_URL instead when it is set. They run in as many processes as there
are processors; those of a file or folder that is named run in one, slow ones too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

ALL_WITH_TESTS = ["-e", ".[all]", "--group", "test"]
NEEDS = {
    "demo": ["-e", ".[demo]"],
    "test": ALL_WITH_TESTS,
    "bench": ALL_WITH_TESTS,
    "check": [*ALL_WITH_TESTS, "--group", "lint"],
    "matrix": ["--group", "matrix"],
}
RUNS = {
    "demo": ["-m", "handstamp", "demo"],
    "test": ["-m", "pytest"],
    "bench": ["-m", "benchmarks"],
    "matrix": ["tests/matrix.py"],
}
CHECKS = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["pyright", "--pythonpath", str(PYTHON)],
]


def main(arguments: list[str]) -> None:
    """Install what the command needs, then become the command."""
    if not arguments or arguments[0] not in NEEDS:
        asked = bool(arguments) and arguments[0] in {"help", "-h", "--help"}
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    if sys.version_info < (3, 11):  # noqa: UP036 - older ones get this far
        sys.exit(f"run.py: needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    command, *rest = arguments
    os.chdir(ROOT)
    prepare(command)
    if command == "check":
        sys.exit(check())
    become([*RUNS[command], *(for_pytest(rest) if command == "test" else rest)])


def for_pytest(arguments: list[str]) -> list[str]:
    """Give pytest what it needs to run the quick tests at once, or all of them."""
    if any(names_tests(argument) for argument in arguments):
        return arguments
    at_once = ["-n", "auto", "--dist", "loadscope"]
    if "--all" in arguments:
        return [*at_once, *(a for a in arguments if a != "--all")]
    return [*at_once, "-m", "not slow", *arguments]


def names_tests(argument: str) -> bool:
    """Tell whether an argument is a file or folder of tests, or one test."""
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


def prepare(command: str) -> None:
    """Bring .venv to what the command needs; remember it in a stamp file."""
    needs = NEEDS[command]
    wanted = stamp(needs)
    record = VENV / f"installed-{hashlib.sha256(repr(needs).encode()).hexdigest()[:8]}"
    if PYTHON.exists() and record.exists() and record.read_text() == wanted:
        return
    make_venv()
    say(f"installing what '{command}' needs into .venv ...")
    pip("install", "--upgrade", "pip>=25.1")  # the first with --group
    pip("install", *needs)
    record.write_text(wanted)


def stamp(needs: list[str]) -> str:
    """Give a text that changes whenever something else has to be installed."""
    project = (ROOT / "pyproject.toml").read_bytes()
    # The place counts: an editable install remembers it, and a copy must not use it.
    return hashlib.sha256(project + repr((needs, str(ROOT))).encode()).hexdigest()


def make_venv() -> None:
    """Make .venv with pip in it, or complete one that was left without."""
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        sys.exit(
            "run.py: this Python cannot make virtual environments. On Debian and "
            "Ubuntu: apt install python3-venv"
        )
    if not PYTHON.exists():
        say("making .venv ...")
        for outdated in VENV.glob("installed-*"):
            outdated.unlink()
        venv.create(VENV, symlinks=os.name != "nt")
    if subprocess.call([PYTHON, "-c", "import pip"], stderr=subprocess.DEVNULL):
        run("-m", "ensurepip", "--upgrade", "--default-pip", quiet=True)


def pip(*arguments: str) -> None:
    """Run the pip of .venv."""
    run("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def run(*arguments: str, quiet: bool = False) -> None:
    """Run the Python of .venv; end with its status when it fails."""
    output = subprocess.DEVNULL if quiet else None
    status = subprocess.call([PYTHON, *arguments], stdout=output)
    if status:
        sys.exit(f"run.py: failed: python {' '.join(arguments)}")


def check() -> int:
    """Run every check, also after one has failed; give 1 when one has."""
    with tempfile.TemporaryDirectory() as built:
        package = [
            ["build", "--no-isolation", "--outdir", built],
            ["twine", "check", "--strict", f"{built}/*"],
        ]
        failed = 0
        for name, *arguments in [*CHECKS, *package]:
            say(" ".join([name, *arguments]))
            failed |= bool(subprocess.call([PYTHON, "-m", name, *arguments]))
    return failed


def become(arguments: list[str]) -> None:
    """Replace this process, so that signals and the status are the command's."""
    if os.name == "nt":
        sys.exit(subprocess.call([PYTHON, *arguments]))
    os.execv(PYTHON, [str(PYTHON), *arguments])


def say(text: str) -> None:
    """Tell the user what takes so long."""
    print(f"run.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
