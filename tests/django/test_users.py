"""Where users come from: a function of the settings, a model, or just the id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.exceptions import DenyConnection
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.test import override_settings
from django.urls import path

from handstamp.django import AnonymousSessionUser, SessionUser, wrap
from handstamp.django.users import aload_user, load_user
from tests.django import django_setup
from tests.support.asgi import socket_scope
from tests.support.engines import Engine

assert django_setup.OURS


def find(user_id: str) -> SessionUser | None:
    """Everybody but bob."""
    return None if user_id == "bob" else SessionUser(user_id)


async def afind(user_id: str) -> SessionUser | None:
    """The same, awaited."""
    return find(user_id)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The engine of the settings."""
    engine = Engine()
    with override_settings(HANDSTAMP={"SESSIONS": engine.sessions}):
        yield engine


@pytest.mark.parametrize("function", [find, afind])
async def test_a_function_of_the_settings_finds_users(
    engine: Engine, function: Callable[[str], Any]
) -> None:
    """Sync or async, in views of either kind; None is the anonymous user."""
    setting = {"SESSIONS": engine.sessions, "GET_USER": function}
    with override_settings(HANDSTAMP=setting):
        for user in (await aload_user("alice"), await sync_to_async(load_user)("alice")):
            assert (user.pk, user.is_authenticated) == ("alice", True)
        for user in (await aload_user("bob"), await sync_to_async(load_user)("bob")):
            assert not user.is_authenticated
        assert not (await aload_user(None)).is_authenticated


def test_without_a_model_a_user_is_their_id(engine: Engine) -> None:
    """As templates and permission checks expect a user to be."""
    with override_settings(AUTH_USER_MODEL="nowhere.User"):
        user = load_user("alice")
    assert isinstance(user, SessionUser)
    assert (str(user), user.get_username(), user.pk) == ("alice",) * 3
    assert (user.is_authenticated, user.is_anonymous, user.is_active) == (True, False, True)
    asked = user.has_perm("x"), user.has_perms(["x"]), user.has_module_perms("x")
    assert (*asked, user.has_perms([])) == (False, False, False, True)
    assert {user, SessionUser("alice")} == {user}
    assert user != SessionUser("bob")


def test_without_contrib_auth_the_anonymous_user_is_ours(engine: Engine) -> None:
    """With the two attributes that most code reads."""
    with override_settings(INSTALLED_APPS=["handstamp.django"]):
        user = load_user(None)
    assert isinstance(user, AnonymousSessionUser)
    assert (user.is_authenticated, user.is_anonymous, user.is_active) == (
        False,
        True,
        False,
    )


class Echo(AsyncWebsocketConsumer):
    """A consumer of Channels for users who are logged in."""

    async def connect(self) -> None:
        """Ask the handle of the handshake."""
        user_id = self.scope["handstamp"].user_id
        if user_id is None:
            raise DenyConnection
        await self.accept()
        await self.send(user_id)


def channels() -> Any:
    """Django and Channels on one address."""
    sockets = URLRouter([path("ws", Echo.as_asgi())])
    return ProtocolTypeRouter({"http": get_asgi_application(), "websocket": sockets})


def handshake(token: str | None = None, **more: Any) -> ApplicationCommunicator:
    """A browser that is about to connect, signed in or not."""
    cookie = [(b"cookie", f"__Host-session={token}".encode())] if token else []
    scope = socket_scope("/ws", headers=cookie, **more)
    return ApplicationCommunicator(wrap(channels()), scope)


async def answer(browser: ApplicationCommunicator) -> dict[str, Any]:
    """What a handshake is answered with."""
    await browser.send_input({"type": "websocket.connect"})
    return await browser.receive_output()


async def test_channels_has_the_handle(engine: Engine) -> None:
    """And a revoked session closes its socket with 4401."""
    nobody = handshake()
    assert (await answer(nobody))["type"] == "websocket.close"
    await nobody.wait()
    issued = await engine.login()
    alice = handshake(issued.session_token)
    assert (await answer(alice))["type"] == "websocket.accept"
    assert (await alice.receive_output())["text"] == "alice"
    await engine.sessions.revoke(issued.session.id)
    closed = await alice.receive_output()
    assert (closed["type"], closed["code"]) == ("websocket.close", 4401)
    await alice.wait()


async def test_channels_in_an_outage_denies_the_handshake(engine: Engine) -> None:
    """With the 503 of everybody else, or its close code where there can be no answer."""
    issued = await engine.login()
    engine.clock.advance(engine.policy.session_ttl / 2)
    engine.store.down = True
    closing = handshake(issued.session_token)
    assert (await answer(closing))["code"] == 1013
    await closing.wait()
    answering = {"websocket.http.response": {}}
    denied = handshake(issued.session_token, extensions=answering)
    assert (await answer(denied))["status"] == 503
    await denied.wait()
