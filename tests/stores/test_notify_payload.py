"""The grammar of payloads, and the channel of MemoryStore."""

from __future__ import annotations

import pytest

from handstamp.core.tokens import LONGEST_ID
from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import Notification
from handstamp.stores.memory import MemoryStore
from handstamp.stores.notify.sql import Probe, read_payload


@pytest.mark.parametrize(
    ("payload", "expected"),
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
def test_a_payload_is_a_kind_and_an_id(
    payload: str, expected: Notification | Probe
) -> None:
    """Only the first colon separates; a probe is no notification."""
    assert read_payload(payload) == expected


@pytest.mark.parametrize(
    "payload",
    [
        *("", "s", "s:", "u:", "d:", "x:1", "S:1", "ALL", "all:", "all ", "\x00"),
        '{"s":1}',
        *("s" * 7999, "s:" + 7997 * "x", "u:" + (LONGEST_ID + 1) * "x"),
    ],
)
def test_c68_what_is_malformed_means_anything(payload: str) -> None:
    """Reading too much again is the harmless mistake; it is counted as unknown."""
    assert read_payload(payload) == Notification(understood=False)


async def test_a_channel_in_memory_is_lost_as_the_store_is_down() -> None:
    """Neither listening, nor sending, nor proving works then."""
    store = MemoryStore()
    received: list[str] = []
    link = await store.channel.listen(received.append, lambda: None)
    store.down = True
    with pytest.raises(SessionsUnavailable):
        await store.channel.listen(received.append, lambda: None)
    with pytest.raises(SessionsUnavailable):
        await store.channel.notify("s:1")
    with pytest.raises(SessionsUnavailable):
        await link.prove()
    assert received == []


async def test_a_cut_channel_in_memory_calls_each_listener_once() -> None:
    """And delivers nothing to them any more."""
    store = MemoryStore()
    received: list[str] = []
    lost: list[int] = []
    for n in range(2):
        await store.channel.listen(received.append, lambda n=n: lost.append(n))
    store._channel.cut()
    store._channel.cut()
    await store.channel.notify("s:1")
    assert (lost, received) == ([0, 1], [])
