"""A browser on an ASGI application, with a jar that takes Secure cookies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.websockets import WebSocketDisconnect

with warnings.catch_warnings():
    # Starlette 1.10 asks for a successor of httpx that other versions do not know.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient as TestClient
    from starlette.testclient import WebSocketDenialResponse

DENIED = (WebSocketDisconnect, WebSocketDenialResponse)
"""What a handshake that was refused raises, with a close code or a status."""


@contextmanager
def browser(app: Any, **options: Any) -> Iterator[TestClient]:
    """Serve ``app`` from its startup to its shutdown, over https."""
    options = {"base_url": "https://testserver", "follow_redirects": False, **options}
    with TestClient(app, **options) as client:
        yield client
