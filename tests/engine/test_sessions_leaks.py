"""P12: no token, no digest, no full address in a log line, a repr or an exception.

One engine lives a whole life with every logger at DEBUG. Everything that was ever minted
is then searched in everything that was ever shown.
"""

from __future__ import annotations

import logging
import traceback
from datetime import timedelta
from hashlib import sha256

import pytest

from handstamp.config import Policy
from handstamp.core.models import Issued
from handstamp.errors import HandstampError
from tests.support.engines import LAPTOP, PHONE, Engine, credentials_of, running, seconds


async def life(engine: Engine, minted: list[Issued], seen: list[object]) -> None:
    """Every event there is, with all that it returns and raises."""
    issued = await engine.login()
    bob = await engine.login("bob", remember=False)
    seen += [await engine.ask(issued), await engine.ask(issued, bob)]
    await engine.expire()
    fresh = await engine.refreshed(issued)
    minted += [issued, bob, fresh, await engine.refreshed(issued)]
    engine.clock.advance(timedelta(minutes=1))
    await engine.ask(fresh, client=PHONE)
    seen += engine.sessions._state.activity._pending.values()
    seen += engine.sessions._state.cache._live.values()
    await engine.sessions.flush()
    swapped = credentials_of([fresh.refresh_token], [fresh.session_token])
    seen += [swapped, await engine.sessions.authenticate(swapped, PHONE)]
    engine.clock.advance(timedelta(minutes=1))
    seen.append(await engine.ask(issued, client=PHONE))  # a replay
    await engine.sessions.revoke(bob.session.id)
    engine.store.down = True
    for call in (
        lambda: engine.sessions.create("alice"),
        lambda: engine.sessions.refresh(fresh.refresh_token),
        lambda: engine.sessions.revoke(fresh.session.id),
    ):
        with pytest.raises(HandstampError) as failure:
            await call()
        seen.append("".join(traceback.format_exception(failure.value)))
    seen.append(await engine.ask(fresh))
    engine.store.down = False


async def test_p11_p12_a_whole_life_shows_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a token nor a digest nor a part of one, in no log, repr or traceback."""
    caplog.set_level(logging.DEBUG)
    minted: list[Issued] = []
    seen: list[object] = []
    policy = Policy(grace=seconds(20), flush_every=seconds(5))
    async with running(policy=policy) as engine:
        await life(engine, minted, seen)
        seen += [engine.sessions, engine.sessions.stats(), minted, engine.events]
        seen += list(engine.store.rows.values())
    actions = set(engine.sessions.stats().events)
    assert actions >= {"logged_in", "refreshed", "reissued", "replayed", "revoked"}
    assert actions >= {"binding_changed", "duplicate_cookie", "token_swap"}
    logged = [repr(vars(record)) for record in caplog.records]
    shown_text = "\n".join([*logged, repr(seen), *map(str, seen)])
    assert len(caplog.records) >= len(actions)
    for text in secrets_of(minted):
        assert text not in shown_text
    for client in (LAPTOP, PHONE):
        assert str(client.address) not in shown_text


def secrets_of(minted: list[Issued]) -> set[str]:
    """The start of the random part, the signature and the digest of each token."""
    found = set()
    for issued in minted:
        for token in (issued.session_token, issued.refresh_token):
            value, _, signature = token.rpartition(".")
            random = value.rpartition(".")[2]
            found |= {random, signature, sha256(token.encode()).hexdigest()}
    return {text[:20] for text in found}
