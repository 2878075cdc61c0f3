"""A notification channel that a test controls: what it delivers, refuses and proves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import ListenConnection


class FakeChannel:
    """Implements the ``Channel`` protocol. A test may change each attribute at any time.

    While ``may_listen`` is not set, ``listen`` waits; while ``may_answer`` is not set,
    ``prove`` waits. ``fault`` is what both raise.
    """

    def __init__(self) -> None:
        self.connections: list[FakeListenConnection] = []
        self.listens = 0
        self.proofs = 0
        self.fault: Exception | None = None
        self.loses_notifications = False
        self.all_writers_notify = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_listen = asyncio.Event()
        self.may_listen.set()

    async def listen(
        self, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        self.listens += 1
        await self.may_listen.wait()
        if self.fault is not None:
            raise self.fault
        connection = FakeListenConnection(self, heard, lost)
        self.connections.append(connection)
        return connection

    async def notify(self, payload: str) -> None:
        if not self.loses_notifications:
            self.deliver(payload)

    def deliver(self, payload: str) -> None:
        """Deliver a notification to every listener."""
        for connection in list(self.connections):
            connection.on_notification(payload)

    def disconnect(self) -> None:
        """Lose every connection, as the driver reports it."""
        for connection in list(self.connections):
            connection.on_lost()


class FakeListenConnection:
    """One listening connection of a :class:`FakeChannel`."""

    def __init__(
        self,
        channel: FakeChannel,
        on_notification: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.channel = channel
        self.on_notification = on_notification
        self.on_lost = on_lost

    async def prove(self) -> None:
        self.channel.proofs += 1
        await self.channel.may_answer.wait()
        if self.channel.fault is not None:
            raise SessionsUnavailable("the channel has a fault")

    async def all_writers_notify(self) -> bool:
        return self.channel.all_writers_notify

    def drop(self) -> None:
        if self in self.channel.connections:
            self.channel.connections.remove(self)
