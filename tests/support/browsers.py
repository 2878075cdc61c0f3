"""Starlette's test client over https, which accepts Secure cookies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.websockets import WebSocketDisconnect

with warnings.catch_warnings():
    # Starlette 1.10 warns about httpx, whose successor other versions do not support.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient as TestClient
    from starlette.testclient import WebSocketDenialResponse

DENIED = (WebSocketDisconnect, WebSocketDenialResponse)
"""What a refused handshake raises, with a close code or a status."""


@contextmanager
def browser(app: Any, **options: Any) -> Iterator[TestClient]:
    """A client of ``app``, from the startup of the application to its shutdown."""
    options = {"base_url": "https://testserver", "follow_redirects": False, **options}
    with TestClient(app, **options) as client:
        yield client
