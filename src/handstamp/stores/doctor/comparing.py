"""A shape in words: as Python to paste, and how it differs from a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from handstamp.stores.doctor.doubting import columns_of
from handstamp.stores.doctor.findings import Finding, Level
from handstamp.stores.doctor.proposing import NEEDED, PRESETS
from handstamp.stores.fitting import capabilities_of
from handstamp.stores.shapes import TableShape, UsersTable

NAMES: Mapping[str, str] = {"ulid": "ULID_HASHED", "uuid": "UUID_PLAIN"}

_WITHOUT: Mapping[str, str] = {
    "refresh_token": "nothing rotates: a session has one token for life",
    "refresh_expires_at": "",
    "created_at": "nothing says when a session began: it has no absolute limit, and its"
    " expiry stays where the sign-in put it",
    "last_activity_at": "activity is not recorded: there is no idle limit, and a list of"
    " sessions cannot say when each was last used",
    "is_active": "there is no flag for a live session",
    "revoked_at": "the table does not remember when a session was ended",
    "revoked_reason": "the table does not remember why a session was ended",
    "address": "the client's address is not kept: no event when it changes",
    "user_agent": "the User-Agent header is not kept: a list of sessions names no browser",
    "user_agent_hash": "no digest of the User-Agent header is kept: no event when it"
    " changes",
    "fingerprint": "no fingerprint of the device is kept",
    "location": "no location is kept",
    "level": "there are no trust levels: auth.require(level=…) and step_up() are off",
}
_AT_REST: Mapping[str, str] = {
    "digest": "the column holds SHA-256 digests in hex",
    "prefixed": "the column holds digests with sha256: in front",
    "plain": "rows may still hold tokens in clear: they are honoured, and replaced by"
    " digests at their first use",
}
_NEW_ID: Mapping[str, str] = {
    "ulid": "ids are ULIDs, made by handstamp",
    "uuid": "ids are UUIDs, made by handstamp",
    "database": "ids come from the column's own default",
}
_CAPABILITIES: Mapping[str, str] = {
    "refresh": "refresh tokens that rotate",
    "sliding": "an expiry that moves with activity",
    "activity": "last activity and idle limit",
    "absolute": "absolute limit from the sign-in",
    "user_status": "a disabled user's sessions end",
    "password_change": "a changed password can end sessions",
    "level": "trust levels and step-up",
    "fingerprint": "device fingerprint",
    "plain": "tokens in clear are honoured and replaced",
}


def as_python(shape: TableShape, *, decided: bool = True) -> str:
    """``shape`` as Python that makes it, imports and all.

    Where it is not decided how tokens are stored, the Python raises until somebody says so.
    """
    preset = next((n for key, n in NAMES.items() if PRESETS[key] == shape), None)
    if preset is not None and decided:
        return f"from handstamp import {preset}\n\nshape = {preset}\n"
    open_question: dict[str, object] = {} if decided else {"at_rest": ...}
    remark = "" if decided else '# at_rest= is for you to say: see "tokens" below.\n'
    for key, name in NAMES.items():
        changed = _changed(shape, PRESETS[key]) | open_question
        if len(changed) <= 2 and "users" not in changed:
            given = ", ".join(f"{k}={_literal(v)}" for k, v in changed.items())
            return (
                "from dataclasses import replace\n\n"
                f"from handstamp import {name}\n\n"
                f"{remark}shape = replace({name}, {given})\n"
            )
    default = TableShape()
    names = ["TableShape"] + ([] if shape.users is None else ["UsersTable"])
    if shape.users == default.users:
        names = ["TableShape"]
    lines = [
        f"    {field.name}={_literal(open_question.get(field.name, value))},"
        for field in fields(shape)
        if (value := getattr(shape, field.name)) != getattr(default, field.name)
        or field.name in ("table", *NEEDED, *open_question)
    ]
    head = f"from handstamp import {', '.join(names)}"
    return "\n".join([head, "", f"{remark}shape = TableShape(", *lines, ")", ""])


def _changed(shape: TableShape, preset: TableShape) -> dict[str, object]:
    pairs = (
        (f.name, getattr(shape, f.name), getattr(preset, f.name)) for f in fields(shape)
    )
    return {name: ours for name, ours, theirs in pairs if ours != theirs}


def _literal(value: object) -> str:
    if value is ...:
        return "..."
    if not isinstance(value, UsersTable):
        return "None" if value is None else f'"{value}"'
    default = UsersTable()
    given = ", ".join(
        f"{field.name}={_literal(own)}"
        for field in fields(value)
        if (own := getattr(value, field.name)) != getattr(default, field.name)
    )
    return f"UsersTable({given})"


def differences(shape: TableShape, preset: str, *, decided: bool = True) -> list[Finding]:
    """How ``shape`` differs from the preset, in words; without ``at_rest`` where that is
    not decided."""
    other = PRESETS[preset]
    ours, theirs = columns_of(shape), columns_of(other)
    found = [Finding(Level.NOTICE, f, _WITHOUT[f]) for f in theirs if f not in ours]
    found = [finding for finding in found if finding.text]
    found += [
        Finding(Level.OK, f, f"here {ours[f]}, in {NAMES[preset]} {theirs.get(f, 'none')}")
        for f in ours
        if ours[f] != theirs.get(f)
    ]
    if decided and shape.at_rest != other.at_rest:
        found.append(Finding(Level.OK, "at_rest", _AT_REST[shape.at_rest]))
    if shape.new_id != other.new_id:
        found.append(Finding(Level.OK, "new_id", _NEW_ID[shape.new_id]))
    return found + _ending(shape) + _users(shape, other)


def _ending(shape: TableShape) -> list[Finding]:
    if shape.is_active or shape.revoked_at:
        return []
    text = "neither a flag nor a date ends a session: handstamp ends it by deleting the row"
    return [Finding(Level.NOTICE, "revocation", text)]


def _users(shape: TableShape, other: TableShape) -> list[Finding]:
    if other.users is None or shape.users == other.users:
        return []
    if shape.users is None:
        text = (
            "no table of users is read: a user whom your code disables keeps every session"
            " until you call sessions.revoke_user()"
        )
        return [Finding(Level.NOTICE, "users", text)]
    ours, theirs = columns_of(shape.users), columns_of(other.users)
    return [
        Finding(Level.NOTICE, "users", f"{shape.users.table} has no {field}")
        for field in theirs
        if field not in ours
    ]


def capabilities(shape: TableShape) -> dict[str, bool]:
    """What a table of this shape can do, in words."""
    able = capabilities_of(shape)
    return {words: bool(getattr(able, name)) for name, words in _CAPABILITIES.items()}
