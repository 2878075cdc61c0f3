"""Payloads and the channel in memory; the one of PostgreSQL is in `test_listening.py`."""

from __future__ import annotations

import pytest

from handstamp.errors import SessionsUnavailable
from handstamp.stores.channel import Notice, read_notice
from handstamp.stores.memory import MemoryStore


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        ("s:01J", Notice(session_id="01J")),
        ("u:01J", Notice(user_id="01J")),
        ("u:a:b", Notice(user_id="a:b")),
        ("s: ", Notice(session_id=" ")),
        ("c:nonce", None),
        ("c:", None),
    ],
)
def test_a_payload_is_a_kind_and_an_id(payload: str, notice: Notice | None) -> None:
    """Only the first colon separates, and a canary is no notice."""
    assert read_notice(payload) == notice


@pytest.mark.parametrize(
    "payload", ["", "s", "s:", "u:", "all", "x:1", "S:1", '{"s":1}', "\x00", "s" * 7999]
)
def test_c68_what_is_malformed_means_anything(payload: str) -> None:
    """Forgetting too much is the harmless mistake."""
    assert read_notice(payload) == Notice()


async def test_a_channel_in_memory_is_lost_as_the_store_is_down() -> None:
    """Neither listening, nor speaking, nor proving works then."""
    store = MemoryStore()
    said: list[str] = []
    link = await store.channel.listen(said.append, lambda: None)
    store.down = True
    with pytest.raises(SessionsUnavailable):
        await store.channel.listen(said.append, lambda: None)
    with pytest.raises(SessionsUnavailable):
        await store.channel.speak("s:1")
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
    await store.channel.speak("s:1")
    assert (lost, said) == ([0, 1], [])
