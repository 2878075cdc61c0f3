"""Django under ASGI: ``uvicorn examples.django.app:app`` from the repository root.

Channels has the WebSocket, for Django has none; ``wrap`` authenticates for both.
"""

from __future__ import annotations

import json
import os

from channels.exceptions import DenyConnection
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from handstamp.django import wrap

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django.settings")


class Echo(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        session = self.scope["handstamp"].session
        if session is None:
            raise DenyConnection
        await self.accept()
        await self.send(json.dumps({"user_id": session.user_id}))

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None
    ) -> None:
        if text_data is None:
            await self.close()
        else:
            await self.send(text_data)


sockets = URLRouter([path("ws", Echo.as_asgi())])
app = wrap(ProtocolTypeRouter({"http": get_asgi_application(), "websocket": sockets}))
