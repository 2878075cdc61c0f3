"""Pyramid: ``gunicorn examples.pyramid.app:app --threads 8`` from the repository root."""

from __future__ import annotations

import sys
from typing import Any

from pyramid.config import Configurator
from pyramid.exceptions import URLDecodeError
from pyramid.httpexceptions import (
    HTTPNoContent,
    HTTPNotFound,
    HTTPServiceUnavailable,
    HTTPUnauthorized,
)
from pyramid.request import Request
from pyramid.security import forget, remember
from pyramid.view import exception_view_config, view_config

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.blocking import call

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)


@view_config(route_name="login", request_method="POST")
def login(request: Request) -> HTTPNoContent:
    form = {name: str(value) for name, value in request.POST.items()}
    kept = form.get("remember") in {"1", "on", "true", "yes"}
    try:
        user_id = call(accounts.verify, form.get("username", ""), form.get("password", ""))
        headers = remember(request, user_id, remember=kept)
    except (WrongPassword, LoginRefused):
        raise HTTPUnauthorized("wrong username or password") from None
    return HTTPNoContent(headers=headers)


@view_config(route_name="logout", request_method="POST")
def logout(request: Request) -> HTTPNoContent:
    return HTTPNoContent(headers=forget(request))


@view_config(route_name="me", request_method="GET", renderer="json", require_session=True)
def me(request: Request) -> dict[str, Any]:
    session = request.current_session
    username = call(accounts.username, session.user_id)
    return {"user_id": session.user_id, "session_id": session.id, "username": username}


@view_config(
    route_name="sessions", request_method="GET", renderer="json", require_session=True
)
def list_sessions(request: Request) -> list[dict[str, object]]:
    return list(map(summary, request.session_auth.list_sessions()))


@view_config(route_name="revoke", request_method="POST", require_session=True)
def revoke(request: Request) -> HTTPNoContent:
    if not request.session_auth.revoke(request.matchdict["id"]):
        raise HTTPNotFound("no such session")
    return HTTPNoContent()


@view_config(route_name="revoke_others", request_method="POST", require_session=True)
def revoke_others(request: Request) -> HTTPNoContent:
    request.session_auth.revoke_others()
    return HTTPNoContent()


@view_config(route_name="public", renderer="json")
def public(request: Request) -> dict[str, str]:
    return {"hello": "world"}


@view_config(route_name="healthz", renderer="json")
def healthz(request: Request) -> dict[str, str]:
    return call(health, sessions)


@exception_view_config(AccountsUnavailable)
def unavailable(exc: Exception, request: Request) -> HTTPServiceUnavailable:
    return HTTPServiceUnavailable("temporarily unavailable", {"Retry-After": "1"})


@exception_view_config(URLDecodeError)
def undecodable(exc: Exception, request: Request) -> HTTPNotFound:
    return HTTPNotFound("no such page")


with Configurator() as config:
    config.include("handstamp.pyramid")
    config.set_session_auth(sessions, cookies=settings.cookies())
    config.add_route("login", "/login")
    config.add_route("logout", "/logout")
    config.add_route("me", "/me")
    config.add_route("sessions", "/sessions")
    config.add_route("revoke", "/sessions/{id}/revoke")
    config.add_route("revoke_others", "/sessions/revoke-others")
    config.add_route("public", "/public")
    config.add_route("healthz", "/healthz")
    config.scan(sys.modules[__name__])
    app = config.make_wsgi_app()
