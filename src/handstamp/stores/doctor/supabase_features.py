"""What each younger column of Supabase Auth's tables is for, and what is off without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.supabase.schema import AMR, V2, Schema, spelled


@dataclass(frozen=True, slots=True)
class Feature:
    """``able`` says what these columns of a table make possible, ``without`` what is so
    where one of them is missing. Without ``columns`` it is the table itself."""

    table: str
    columns: tuple[str, ...]
    able: str
    without: str


FEATURES = (
    Feature(
        "sessions",
        V2,
        "refresh tokens with a counter (v2)",
        "new sessions get v1 refresh tokens, whatever algorithm_version says",
    ),
    Feature(
        "sessions",
        ("aal",),
        "assurance levels",
        "every session is of level 1, and require(level=2) lets nobody in",
    ),
    Feature(
        "mfa_amr_claims",
        AMR,
        "how a user signed in (amr)",
        "access tokens made here say no amr, and are aal1",
    ),
    Feature(
        "sessions",
        ("factor_id",),
        "the factor that was used",
        "which factor was used is not known",
    ),
    Feature(
        "mfa_factors",
        (),
        "the rule allow_low_aal",
        "allow_low_aal changes nothing",
    ),
    Feature(
        "users",
        ("banned_until",),
        "a banned user's sessions end",
        "nobody can be banned",
    ),
    Feature(
        "users",
        ("deleted_at",),
        "a softly deleted user's sessions end",
        "a user is there or gone; nobody can be deleted softly",
    ),
    Feature(
        "sessions",
        ("not_after",),
        "an end of its own for a session",
        "no session can be given an end of its own",
    ),
    Feature(
        "sessions",
        ("refreshed_at",),
        "when a session was last refreshed",
        "the rule inactivity goes by the refresh tokens, and lists by the sign-in",
    ),
    Feature(
        "sessions",
        ("user_agent", "ip"),
        "the client's browser and address in lists",
        "what is missing of them is not in lists of sessions",
    ),
    Feature(
        "sessions",
        ("tag",),
        "the rule tags",
        "tags change nothing: with single_per_user it is one session for each user",
    ),
    Feature(
        "sessions",
        ("oauth_client_id",),
        "sessions of OAuth clients",
        "there are no sessions of OAuth clients",
    ),
    Feature(
        "sessions",
        ("scopes",),
        "scopes of OAuth clients",
        "access tokens made here name no scope",
    ),
    Feature(
        "users",
        ("is_anonymous",),
        "anonymous users are told apart",
        "access tokens made here call nobody anonymous",
    ),
    Feature(
        "users",
        ("phone",),
        "users with a phone number",
        "access tokens made here name no phone number",
    ),
    Feature(
        "users",
        ("is_sso_user",),
        "the audit log knows who came by SSO",
        "the audit log says of nobody that they came by SSO",
    ),
    Feature(
        "audit_log_entries",
        (),
        "the audit log",
        "sign-ins, refreshes and logouts are not logged there",
    ),
)


def able(schema: Schema) -> dict[str, bool]:
    """What these tables can do, in words."""
    return {f.able: schema.has(f.table, *f.columns) for f in FEATURES}


def columns_remarks(name: str, schema: Schema) -> Iterator[Finding]:
    """What is missing and what is off for that, or that nothing is."""
    for feature in FEATURES:
        lacking = [c for c in feature.columns if not schema.has(feature.table, c)]
        place = spelled(name, feature.table)
        if feature.table not in schema.columns:
            text = f"there is no {place}: {feature.without}"
        elif lacking:
            text = f"{place} has no {', '.join(lacking)}: {feature.without}"
        else:
            continue
        yield Finding(Level.NOTICE, "columns", text)
    if not schema.missing:
        text = "every column that handstamp knows of is there"
        yield Finding(Level.OK, "columns", text)
