"""Bottle: ``gunicorn examples.bottle.app:app --threads 8`` from the repository root."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from bottle import Bottle, HTTPError, HTTPResponse, request, response

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused, Session
from handstamp.blocking import call
from handstamp.bottle import SessionAuthPlugin
from handstamp.wsgi import Handle

P = ParamSpec("P")
T = TypeVar("T")

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
app = Bottle()
app.install(SessionAuthPlugin(sessions, cookies=settings.cookies()))


def ask(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return call(function, *args, **kwargs)
    except AccountsUnavailable:
        raise HTTPError(503, "temporarily unavailable", Retry_After="1") from None


@app.post("/login")
def login(auth: Handle) -> HTTPResponse:
    form = request.forms
    try:
        user_id = ask(accounts.verify, form.username, form.password)
        auth.login(user_id, remember=form.remember in {"1", "on", "true", "yes"})
    except (WrongPassword, LoginRefused):
        raise HTTPError(401, "wrong username or password") from None
    return HTTPResponse(status=204)


@app.post("/logout")
def logout(auth: Handle) -> HTTPResponse:
    auth.logout()
    return HTTPResponse(status=204)


@app.get("/me", login=True)
def me(session: Session) -> dict[str, str | None]:
    username = ask(accounts.username, session.user_id)
    return {"user_id": session.user_id, "session_id": session.id, "username": username}


@app.get("/sessions", login=True)
def list_sessions(auth: Handle) -> str:
    response.content_type = "application/json"
    return json.dumps([summary(session) for session in auth.list_sessions()])


@app.post("/sessions/<id>/revoke", login=True)
def revoke(id: str, auth: Handle) -> HTTPResponse:
    return HTTPResponse(status=204 if auth.revoke(id) else 404)


@app.post("/sessions/revoke-others", login=True)
def revoke_others(auth: Handle) -> HTTPResponse:
    auth.revoke_others()
    return HTTPResponse(status=204)


@app.get("/public")
def public() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return call(health, sessions)
