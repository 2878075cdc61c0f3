"""Browsers of the site, over both transports and in both of Django's modes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

from handstamp import blocking
from handstamp.django import wrap
from tests.support.engines import Engine

NAMES = {"__Host-session", "__Host-refresh"}
SYNC_ONLY = "tests.django.django_site.SyncOnly"


def in_thread(application: Any) -> httpx.BaseTransport:
    """WSGI."""
    return httpx.WSGITransport(application, raise_app_exceptions=False)


class Browser:
    """A browser with cookies on one application, awaited under either transport."""

    def __init__(self, transport: Any) -> None:
        self._sync = isinstance(transport, httpx.BaseTransport)
        kind: Any = httpx.Client if self._sync else httpx.AsyncClient
        self.client = kind(transport=transport, base_url="https://testserver")
        self.cookies: httpx.Cookies = self.client.cookies

    async def request(self, *args: Any, **options: Any) -> httpx.Response:
        """One request."""
        if self._sync:
            return await asyncio.to_thread(self.client.request, *args, **options)
        response: httpx.Response = await self.client.request(*args, **options)
        return response

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return await self.request("POST", path, **options)

    async def close(self) -> None:
        """Let go."""
        if self._sync:
            self.client.close()
        else:
            await self.client.aclose()


def wsgi() -> Any:
    return in_thread(get_wsgi_application())


def asgi() -> Any:
    return httpx.ASGITransport(get_asgi_application(), raise_app_exceptions=False)


def asgi_in_a_thread() -> Any:
    """With a middleware below ours that makes Django run ours in a thread."""
    return asgi()


def wrapped() -> Any:
    """With the middleware around the application as well."""
    return httpx.ASGITransport(wrap(get_asgi_application()), raise_app_exceptions=False)


async def closed(engine: Engine) -> None:
    """Close the engine on whichever loop it is."""
    await engine.sessions.close()
    await asyncio.to_thread(blocking.call, engine.sessions.close)
