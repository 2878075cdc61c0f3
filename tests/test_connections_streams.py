"""Streams that end with their session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from handstamp.asgi import Handle, SessionAuthMiddleware
from handstamp.config import Policy
from handstamp.core.models import Authenticated
from handstamp.errors import AuthenticationRequired
from tests.support.asgi import responding
from tests.support.engines import ALICE, Engine, running, seconds

SLOW = Policy(max_staleness=seconds(3600), longest_trust=seconds(3600))


class Source:
    """Items 0 and 1, and then none; ``closed`` is whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def items(self) -> AsyncIterator[int]:
        """The items."""
        try:
            yield 0
            yield 1
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def handle(engine: Engine) -> Handle:
    """The handle of a request of alice's."""
    issued = await engine.login()
    options = SessionAuthMiddleware(responding(), engine.sessions)._options
    made = Handle(options, [], None)
    made._resolve(Authenticated(session=issued.session))
    return made


async def test_c112_a_stream_ends_with_its_session() -> None:
    """Also while it waits for the next item; the source is closed, nothing is left."""
    async with running() as engine:
        auth, source, seen = await handle(engine), Source(), []
        async with asyncio.timeout(30):
            async for item in auth.while_valid(source.items()):
                seen.append(item)
                if item == 1:
                    await engine.sessions.revoke_user(ALICE)
        assert seen == [0, 1]
        assert len(engine.sessions.connections) == 0
        assert source.closed


async def test_a_stream_begun_after_its_session_ended_ends_at_once() -> None:
    """It ended elsewhere after the request was authenticated: the table is asked as the
    stream begins, and not in the next round."""
    async with running(policy=SLOW) as engine:
        auth, source = await handle(engine), Source()
        record = engine.row(auth.require().id)
        engine.store.rows[record.id] = replace(record, is_active=False)
        engine.store.channel.send(f"s:{record.id}")  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            async for _ in auth.while_valid(source.items()):
                pass
        assert len(engine.sessions.connections) == 0


async def test_a_stream_that_ends_by_itself_is_whole() -> None:
    """Every item, and the session lives on."""

    async def three() -> AsyncIterator[int]:
        for item in range(3):
            yield item

    async with running() as engine:
        auth = await handle(engine)
        assert [item async for item in auth.while_valid(three())] == [0, 1, 2]
        assert len(engine.sessions.connections) == 0


async def test_an_exception_of_the_source_passes_through() -> None:
    """It is the application's own."""

    async def faulty() -> AsyncIterator[int]:
        yield 0
        raise LookupError

    async with running() as engine:
        auth = await handle(engine)
        with pytest.raises(LookupError):
            [item async for item in auth.while_valid(faulty())]
        assert len(engine.sessions.connections) == 0


async def test_there_is_no_stream_without_a_session() -> None:
    """At once, so that the response can still be a 401."""
    async with running() as engine:
        options = SessionAuthMiddleware(responding(), engine.sessions)._options
        with pytest.raises(AuthenticationRequired):
            Handle(options, [], None).while_valid(Source().items())
