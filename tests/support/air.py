"""A channel in the air: a test decides what it carries, refuses and proves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from handstamp.errors import SessionsUnavailable
from handstamp.stores.base import ListenConnection


class Air:
    """Implements the ``Channel`` protocol; every attribute may be changed at any time."""

    def __init__(self) -> None:
        self.links: list[AirLink] = []
        self.listens = 0
        self.proofs = 0
        self.fault: Exception | None = None
        self.mute = False
        self.covers = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.listening = asyncio.Event()
        self.listening.set()

    async def listen(
        self, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> ListenConnection:
        self.listens += 1
        await self.listening.wait()
        if self.fault is not None:
            raise self.fault
        link = AirLink(self, heard, lost)
        self.links.append(link)
        return link

    async def notify(self, payload: str) -> None:
        if not self.mute:
            self.say(payload)

    def say(self, payload: str) -> None:
        for link in list(self.links):
            link.heard(payload)

    def cut(self) -> None:
        """Lose every connection, as the driver reports it."""
        for link in list(self.links):
            link.lost()


class AirLink:
    """One listener."""

    def __init__(
        self, air: Air, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        self.air = air
        self.heard = heard
        self.lost = lost

    async def prove(self) -> None:
        self.air.proofs += 1
        await self.air.answers.wait()
        if self.air.fault is not None:
            raise SessionsUnavailable("in the air")

    async def all_writers_notify(self) -> bool:
        return self.air.covers

    def drop(self) -> None:
        if self in self.air.links:
            self.air.links.remove(self)
