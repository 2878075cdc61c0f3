"""Payloads and the channel in memory; the one of PostgreSQL is in `test_listening.py`."""

from __future__ import annotations

import pytest

from handstamp.core.tokens import LONGEST_ID
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Notification
from handstamp.stores.memory import MemoryStore
from handstamp.stores.notify.sql import Probe, read_payload


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        ("s:01J", Notification(session_id="01J")),
        ("u:01J", Notification(user_id="01J")),
        ("u:a:b", Notification(user_id="a:b")),
        ("d:01J", Notification(session_id="01J")),
        ("s:a:b", Notification(session_id="a:b")),
        ("s: ", Notification(session_id=" ")),
        ("s:" + LONGEST_ID * "x", Notification(session_id=LONGEST_ID * "x")),
        ("all", Notification()),
        ("c:nonce", Probe("nonce")),
        ("c:", Probe("")),
        ("c:a:b", Probe("a:b")),
        ("c", Probe("")),
    ],
)
def test_a_payload_is_a_kind_and_an_id(payload: str, notice: Notification | Probe) -> None:
    """Only the first colon separates, and a canary is no notice."""
    assert read_payload(payload) == notice


@pytest.mark.parametrize(
    "payload",
    [
        *("", "s", "s:", "u:", "d:", "x:1", "S:1", "ALL", "all:", "all ", "\x00"),
        '{"s":1}',
        *("s" * 7999, "s:" + 7997 * "x", "u:" + (LONGEST_ID + 1) * "x"),
    ],
)
def test_c68_what_is_malformed_means_anything(payload: str) -> None:
    """To read too much again is the harmless mistake, and it is known to be one."""
    assert read_payload(payload) == Notification(understood=False)


async def test_a_channel_in_memory_is_lost_as_the_store_is_down() -> None:
    """Neither listening, nor speaking, nor proving works then."""
    store = MemoryStore()
    said: list[str] = []
    link = await store.channel.listen(said.append, lambda: None)
    store.down = True
    with pytest.raises(SessionsUnavailable):
        await store.channel.listen(said.append, lambda: None)
    with pytest.raises(SessionsUnavailable):
        await store.channel.notify("s:1")
    with pytest.raises(SessionsUnavailable):
        await link.prove()
    assert said == []


async def test_a_cut_channel_in_memory_tells_each_listener_once() -> None:
    """And delivers nothing to them any more."""
    store = MemoryStore()
    said: list[str] = []
    lost: list[int] = []
    for n in range(2):
        await store.channel.listen(said.append, lambda n=n: lost.append(n))
    store._channel.cut()
    store._channel.cut()
    await store.channel.notify("s:1")
    assert (lost, said) == ([0, 1], [])
