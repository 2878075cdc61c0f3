"""What the examples read from the environment.

DATABASE_URL                  postgresql://user:password@host:port/name
HANDSTAMP_SECRET              comma-separated, oldest first; at least 32 bytes each
HANDSTAMP_SHAPE               what the tables look like: ulid
HANDSTAMP_INSECURE_COOKIES    1 for plain http on your own machine
HANDSTAMP_SESSION_TTL and every other duration of Policy, in seconds
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from handstamp import ULID_HASHED, Cookies, Policy, TableShape

SHAPES: Mapping[str, TableShape] = {"ulid": ULID_HASHED}


def database_url() -> str:
    """The database; ends the program with a hint where none is given."""
    return _required("DATABASE_URL", "postgresql://user:password@host:port/name")


def secrets() -> list[str]:
    """The secrets, oldest first; ends the program with a hint where none is given."""
    hint = '$(python -c "import secrets; print(secrets.token_urlsafe(32))")'
    texts = _required("HANDSTAMP_SECRET", hint).split(",")
    return [text.strip() for text in texts if text.strip()]


def shape_name() -> str:
    """The name of the table shape; ends the program for one that there is not."""
    name = os.environ.get("HANDSTAMP_SHAPE") or "ulid"
    if name not in SHAPES:
        sys.exit(f"HANDSTAMP_SHAPE={name}: there is only {', '.join(SHAPES)}")
    return name


def shape() -> TableShape:
    """The table shape of that name."""
    return SHAPES[shape_name()]


def cookies() -> Cookies:
    """Cookies for https, unless plain http is asked for in so many words."""
    insecure = os.environ.get("HANDSTAMP_INSECURE_COOKIES") == "1"
    return Cookies.insecure() if insecure else Cookies()


def policy() -> Policy:
    """The lifetimes."""
    return Policy.from_env()


def _required(name: str, example: str) -> str:
    value = os.environ.get(name, "").strip(", ")
    if not value:
        sys.exit(f"{name} is not set. For example: export {name}={example}")
    return value
