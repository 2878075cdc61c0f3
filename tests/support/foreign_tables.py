"""Tables that were not made for handstamp, each with the shape that its owner would write.

The DDL is in ``foreign/NAME.sql``. ``new_user`` adds a user of that name and returns the
id; ``delete_user`` is how the application deletes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handstamp.stores.base import Capabilities
from handstamp.stores.shapes import TableShape, UsersTable

FOLDER = Path(__file__).parent / "foreign"


@dataclass(frozen=True, kw_only=True)
class ForeignTable:
    """One table, and what a test needs to know of its application.

    ``able`` are the capabilities of its store, if the shape does not determine them.
    ``lacks`` are words of the contract suite for what it does not have, with the reason.
    """

    shape: TableShape
    new_user: str | None
    delete_user: str | None
    able: Capabilities | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)


DJANGO = ForeignTable(
    shape=TableShape(
        table="accounts_usersession",
        token="session_key",
        refresh_token=None,
        refresh_expires_at=None,
        last_activity_at="last_seen",
        revoked_at=None,
        revoked_reason=None,
        user_agent="user_agent",
        user_agent_hash=None,
        fingerprint=None,
        at_rest="prefixed",
        new_id="database",
        users=UsersTable(table="auth_user", locked_until=None, password_changed_at=None),
    ),
    new_user="insert into auth_user (password, is_superuser, username, first_name,"
    " last_name, email, is_staff, is_active, date_joined)"
    " values ('', false, $1, '', '', '', false, true, now()) returning id::text",
    delete_user="with own as (delete from accounts_usersession where user_id::text = $1)"
    " delete from auth_user where id::text = $1",
)

RAILS = ForeignTable(
    shape=TableShape(
        table="authie_sessions",
        token="token_hash",
        refresh_token=None,
        refresh_expires_at=None,
        is_active="active",
        revoked_at=None,
        revoked_reason=None,
        address="login_ip",
        user_agent="user_agent",
        user_agent_hash=None,
        fingerprint=None,
        new_id="database",
        users=UsersTable(
            is_active=None, locked_until=None, password_changed_at="password_changed_at"
        ),
    ),
    new_user="insert into users (email) values ($1) returning id::text",
    delete_user="delete from users where id::text = $1",
)

LUCIA = ForeignTable(
    shape=TableShape(
        table="user_session",
        token="id",
        refresh_token=None,
        refresh_expires_at=None,
        created_at=None,
        last_activity_at=None,
        is_active=None,
        revoked_at=None,
        revoked_reason=None,
        address=None,
        user_agent_hash=None,
        fingerprint=None,
        new_id="database",
        users=None,
    ),
    new_user="insert into auth_user (id, username, password_hash)"
    " values ('u_' || $1, $1, '') returning id",
    delete_user="with own as (delete from user_session where user_id = $1)"
    " delete from auth_user where id = $1",
)

BETTER_AUTH = ForeignTable(
    shape=TableShape(
        table="session",
        user_id="userId",
        token="token",
        refresh_token=None,
        refresh_expires_at=None,
        expires_at="expiresAt",
        created_at="createdAt",
        last_activity_at="updatedAt",
        is_active=None,
        revoked_at=None,
        revoked_reason=None,
        address="ipAddress",
        user_agent="userAgent",
        user_agent_hash=None,
        fingerprint=None,
        at_rest="plain",
        new_id="uuid",
        users=UsersTable(
            table="user", is_active=None, locked_until=None, password_changed_at=None
        ),
    ),
    new_user='insert into "user" ("id", "name", "email", "emailVerified")'
    " values ('u_' || $1, $1, $1, true) returning \"id\"",
    delete_user='delete from "user" where "id" = $1',
)

INTEGERS = ForeignTable(
    shape=TableShape(
        table="member_sessions",
        id="session_no",
        user_id="member_no",
        token="token_sha256",
        refresh_token="refresh_sha256",
        expires_at="valid_until",
        refresh_expires_at="refresh_until",
        created_at="created",
        last_activity_at="last_seen",
        is_active=None,
        revoked_at="ended",
        revoked_reason="ended_because",
        address="ip",
        user_agent="browser",
        user_agent_hash=None,
        fingerprint=None,
        new_id="database",
        users=UsersTable(
            table="members",
            id="member_no",
            is_active="enabled",
            locked_until=None,
            password_changed_at=None,
        ),
    ),
    new_user="insert into members (login) values ($1) returning member_no::text",
    delete_user="delete from members where member_no::text = $1",
)

PARTITIONED = ForeignTable(
    shape=TableShape(
        table="app_sessions",
        token="token",
        refresh_token=None,
        refresh_expires_at=None,
        last_activity_at="seen_at",
        revoked_at="ended_at",
        revoked_reason=None,
        address=None,
        user_agent_hash=None,
        fingerprint=None,
        at_rest="plain",
        new_id="uuid",
        users=None,
    ),
    new_user=None,
    delete_user=None,
    lacks={"own_ids": "an id is unique in its partition only"},
)

FOREIGN = {
    "django": DJANGO,
    "rails": RAILS,
    "lucia": LUCIA,
    "better_auth": BETTER_AUTH,
    "integers": INTEGERS,
    "partitioned": PARTITIONED,
}


def ddl(name: str) -> str:
    """The DDL of the tables of this name."""
    return (FOLDER / f"{name}.sql").read_text("utf-8")
