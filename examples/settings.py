"""Settings of the examples, read from the environment.

DATABASE_URL                  postgresql://user:password@host:port/name
HANDSTAMP_SECRET              comma-separated, oldest first; at least 32 bytes each
HANDSTAMP_SHAPE               what the tables look like: ulid, uuid or supabase
HANDSTAMP_INSECURE_COOKIES    1 for plain http on your own machine
HANDSTAMP_SESSION_TTL and every other duration of Policy, in seconds

and where the tables are Supabase's, whose JWT secret is then the newest of the secrets:

SUPABASE_URL                  of the project, from which the cookie has its name
HANDSTAMP_ACCESS_TOKEN_TTL    life of an access token, in seconds (GoTrue's JWT_EXP)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from handstamp import (
    ULID_HASHED,
    UUID_PLAIN,
    ConfigError,
    Cookies,
    Policy,
    Sessions,
    TableShape,
    UsersTable,
)
from handstamp.stores.connection import check_dsn

SUPABASE = "supabase"
SHAPES: Mapping[str, TableShape] = {
    "ulid": ULID_HASHED,
    "uuid": replace(UUID_PLAIN, users=UsersTable()),
}
_LOCAL = "http://127.0.0.1:54321"  # as `supabase start` has it


def sessions() -> Sessions:
    """The sessions, in tables of the shape in HANDSTAMP_SHAPE."""
    if shape_name() == SUPABASE:
        return _supabase_sessions()
    return Sessions(
        database_url(), secrets=secrets(), shape=SHAPES[shape_name()], policy=policy()
    )


def _supabase_sessions() -> Sessions:
    # Needs the extra of that name.
    from handstamp.supabase import SupabaseRules, SupabaseSessions

    ttl = _seconds("HANDSTAMP_ACCESS_TOKEN_TTL", 3600)
    return SupabaseSessions(
        database_url(),
        url=os.environ.get("SUPABASE_URL") or _LOCAL,
        jwt_secret=secrets()[-1],
        rules=SupabaseRules(access_token_ttl=ttl, reuse_interval=timedelta(seconds=10)),
        policy=policy(),
    )


def database_url() -> str:
    """The address of the database. Ends the program with a hint if it is missing or
    invalid."""
    given = _required("DATABASE_URL", "postgresql://user:password@host:port/name")
    try:
        return check_dsn(given)
    except ConfigError as error:
        sys.exit(f"DATABASE_URL: {error}")


def secrets() -> list[str]:
    """The secrets, oldest first. Ends the program with a hint if there is none."""
    hint = '$(python -c "import secrets; print(secrets.token_urlsafe(32))")'
    texts = _required("HANDSTAMP_SECRET", hint).split(",")
    return [text.strip() for text in texts if text.strip()]


def shape_name() -> str:
    """The name of the table shape. Ends the program for an unknown name."""
    name, names = os.environ.get("HANDSTAMP_SHAPE") or "ulid", [*SHAPES, SUPABASE]
    if name not in names:
        sys.exit(f"HANDSTAMP_SHAPE={name}: there is only {', '.join(names)}")
    return name


def cookies() -> Cookies:
    """Cookies for https, or for plain http with HANDSTAMP_INSECURE_COOKIES=1."""
    insecure = os.environ.get("HANDSTAMP_INSECURE_COOKIES") == "1"
    return Cookies.insecure() if insecure else Cookies()


def policy() -> Policy:
    """The policy, with the lifetimes from the environment."""
    return Policy.from_env()


def _required(name: str, example: str) -> str:
    value = os.environ.get(name, "").strip(", ")
    if not value:
        sys.exit(f"{name} is not set. For example: export {name}={example}")
    return value


def _seconds(name: str, default: int) -> timedelta:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        sys.exit(f"{name}={text}: a whole number of seconds is needed")
    return timedelta(seconds=int(text))
