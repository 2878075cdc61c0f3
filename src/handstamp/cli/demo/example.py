"""The example that the demo runs: where it is, and the environment it reads."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import handstamp
from handstamp.cli.connecting import complain
from handstamp.testing.postgres import cache_home

SHORT = {
    "HANDSTAMP_SESSION_TTL": "20",
    "HANDSTAMP_GRACE": "5",
    "HANDSTAMP_FLUSH_EVERY": "2",
    "HANDSTAMP_TOUCH_EVERY": "2",
    "HANDSTAMP_REFRESH_TTL": "3600",
}
"""Lifetimes that a person can watch, in seconds."""


def find_examples() -> Path:
    """The folder ``examples``: in the installed package, or in the clone around it.

    Raises `typer.Exit` with status 2 when it is in neither.
    """
    package = Path(handstamp.__file__).parent
    for place in (package / "_bundled", package.parents[1]):
        if (place / "examples" / "starlette" / "app.py").is_file():
            return place / "examples"
    raise complain("the examples were not installed along with handstamp", status=2)


def load(name: str) -> ModuleType:
    """Import a module of the examples, which read the environment as they are."""
    return import_module(name)


def set_environment(url: str) -> None:
    """Point the examples to the demo's database, secret and lifetimes.

    ``DATABASE_URL`` of the shell is overridden: the demo writes into no database that
    it was not given in so many words.
    """
    os.environ["DATABASE_URL"] = url
    os.environ["HANDSTAMP_INSECURE_COOKIES"] = "1"
    if not os.environ.get("HANDSTAMP_SECRET"):
        os.environ["HANDSTAMP_SECRET"] = kept_secret(cache_home() / "demo" / "secret")
    for name, seconds in _lifetimes().items():
        os.environ.setdefault(name, seconds)


def _lifetimes() -> dict[str, str]:
    if "HANDSTAMP_SESSION_TTL" not in os.environ:
        return SHORT
    # The others follow from it by themselves, and ours might not go with it.
    return {"HANDSTAMP_TOUCH_EVERY": SHORT["HANDSTAMP_TOUCH_EVERY"]}


def kept_secret(file: Path) -> str:
    """The secret in ``file``, made at the first run so that cookies survive a restart."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
        with open(descriptor, "w") as draft:
            draft.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another demo was faster
            os.link(name, file)
        os.unlink(name)
    return file.read_text()
