"""The nouns of the core, and that none of them talks: cases C-45 and C-46."""

from __future__ import annotations

import io
import logging
import traceback
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.core.cookies import Credentials
from handstamp.core.models import (
    Authenticated,
    Client,
    Issued,
    NewSession,
    Rotation,
    Session,
    Touch,
    mask_address,
)
from handstamp.engine.cache import CacheEntry
from tests.core.samples import NOW, OLD_KEY, make_record, make_tokens

TOKENS = make_tokens()
PAIR = TOKENS.mint("01JGGZ5Z8V0000000000000000", bytes(range(64)), remember=True)
ADDRESS = "203.0.113.99"
CLIENT = Client(address=ADDRESS, user_agent="Firefox", fingerprint="phone-7")
RECORD = make_record(
    token_digest=PAIR.session_digest,
    refresh_digest=PAIR.refresh_digest,
    address=ADDRESS,
    fingerprint="phone-7",
    user_agent_hash=CLIENT.user_agent_hash,
)
MINUTE = timedelta(minutes=1)
ISSUED = Issued.of(RECORD, PAIR, remember=True, deliver_until=1.0)
ENTRY = CacheEntry(
    key=bytes.fromhex(PAIR.session_digest),
    digest=PAIR.session_digest,
    session=Session.of(RECORD),
    hard=1.0,
    deadline=1.0,
    confirmed=1.0,
    read=0.0,
    read_at=NOW,
    touched=0.0,
    used=0.0,
    seen=True,
)
NEW = NewSession(
    id=RECORD.id,
    user_id="alice",
    token_digest=PAIR.session_digest,
    refresh_digest=PAIR.refresh_digest,
    client=CLIENT,
    session_ttl=MINUTE,
    refresh_ttl=MINUTE,
    longest=MINUTE,
)
STEP = Rotation(
    id=RECORD.id,
    presented=PAIR.refresh_digest,
    token_digest=PAIR.session_digest,
    refresh_digest=PAIR.refresh_digest,
    session_ttl=MINUTE,
    refresh_ttl=MINUTE,
    longest=MINUTE,
)
SECRETS = (
    PAIR.session,
    PAIR.refresh,
    PAIR.session_digest,
    PAIR.refresh_digest,
    repr(bytes.fromhex(PAIR.session_digest)),
    repr(TOKENS.read_refresh(PAIR.refresh.encode()).state),  # type: ignore[union-attr]
    ADDRESS,
    "phone-7",
    OLD_KEY,
)
QUIET: list[Any] = [
    CLIENT,
    RECORD,
    RECORD.client,
    Session.of(RECORD),
    PAIR,
    TOKENS,
    TOKENS.read_refresh(PAIR.refresh.encode()),
    ISSUED,
    Authenticated(session=Session.of(RECORD), issued=ISSUED),
    ENTRY,
    NEW,
    STEP,
    Touch(session_id=RECORD.id, token_digest=PAIR.session_digest, at=NOW),
    Credentials(
        session=(PAIR.session.encode(),), refresh=(PAIR.refresh.encode(),), sent=True
    ),
]


def is_quiet(text: str) -> bool:
    """Whether a text holds no token, no digest, no key and no full address."""
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("value", QUIET, ids=lambda value: type(value).__name__)
def test_c45_no_repr_holds_a_secret(value: Any) -> None:
    """Neither repr, str, format nor a container around it shows what it holds."""
    assert is_quiet(repr(value))
    assert is_quiet(str(value))
    assert is_quiet(f"{value} {value!r} {[value]} { ({'k': value}) }")


@pytest.mark.parametrize("value", QUIET, ids=lambda value: type(value).__name__)
def test_c46_a_logged_exception_holds_no_secret(value: Any) -> None:
    """An error raised over a value, logged with its traceback and locals, stays quiet."""
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    try:
        raise RuntimeError("over", value)
    except RuntimeError as exc:
        logger.exception("failed on %s", value)
        with_locals = traceback.TracebackException.from_exception(exc, capture_locals=True)
        stream.writelines(with_locals.format())
    assert "RuntimeError" in stream.getvalue()
    assert is_quiet(stream.getvalue())


def test_the_sweep_knows_a_secret_when_it_sees_one() -> None:
    """The check itself is not blind."""
    assert not is_quiet(f"token={PAIR.session}")
    assert not is_quiet(str(vars(TOKENS.read_refresh(PAIR.refresh.encode()))))


@pytest.mark.parametrize("value", [CLIENT, RECORD, Session.of(RECORD), PAIR, ISSUED, ENTRY])
def test_c45_most_values_have_no_vars(value: Any) -> None:
    """Slots leave nothing for `vars()` to print."""
    with pytest.raises(TypeError):
        vars(value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (None, "unknown"),
        ("203.0.113.99", "203.0.…"),
        ("2001:db8:1:2::9", "2001:db8:…"),
        ("2001:db8::9", "2001:db8:…"),
        ("2001::9", "2001::…"),
        ("::1", "::…"),
        ("fe80::1", "fe80::…"),
    ],
)
def test_an_address_is_masked_to_its_network(address: str | None, shown: str) -> None:
    """A log shows where somebody comes from, never which host it is."""
    assert shown == mask_address(address)


@given(address=st.ip_addresses().map(str).filter(lambda text: not text.endswith("::")))
def test_a_masked_address_is_never_the_address(address: str) -> None:
    """No address survives its mask, but for a network's own."""
    assert address not in mask_address(address)


def test_a_client_shows_its_network_only() -> None:
    """The user agent and the fingerprint stay out of logs as well."""
    assert repr(CLIENT) == "Client(address=203.0.…)"


def test_a_row_remembers_the_client_that_signed_in() -> None:
    """What a row knows of its client, and an empty user agent where it knows none."""
    client = Client(address=ADDRESS, fingerprint="phone-7")
    assert client == RECORD.client
    assert Client() == make_record().client


def test_a_session_is_the_public_side_of_its_row() -> None:
    """An application sees ids, times and the client, and no digest."""
    session = Session.of(RECORD, current=True)
    expected = Session(
        id=RECORD.id,
        user_id="alice",
        created_at=NOW,
        expires_at=RECORD.expires_at,
        last_activity_at=NOW,
        address=ADDRESS,
        fingerprint="phone-7",
        current=True,
    )
    assert expected == session
    assert not any("digest" in name or "token" in name for name in Session.__slots__)


def test_a_row_without_a_creation_shows_when_it_was_read() -> None:
    """The public side always has a date."""
    assert Session.of(make_record(created_at=None)).created_at == NOW


@pytest.mark.parametrize("value", [CLIENT, RECORD, Session.of(RECORD), PAIR, NEW, STEP])
def test_the_nouns_are_frozen(value: Any) -> None:
    """Nobody changes what was read."""
    with pytest.raises((AttributeError, TypeError)):
        value.id = "other"
