"""Around Django's ASGI application: the server's lifespan, and WebSockets beside Django."""

from __future__ import annotations

from handstamp.asgi import SessionAuthMiddleware
from handstamp.django.settings import configuration
from handstamp.types import ASGIApp


def wrap(application: ASGIApp) -> SessionAuthMiddleware:
    """``get_asgi_application()``, or Channels' ``ProtocolTypeRouter``, with the sessions
    of the settings around it.

    Django knows neither the lifespan nor WebSockets. With this, the engine opens and
    closes with the server, and a WebSocket has its handle in ``scope["handstamp"]``. Keep
    the entry in MIDDLEWARE: it gives each request its user.
    """
    found = configuration()
    return SessionAuthMiddleware(application, found.sessions, **found.options)
