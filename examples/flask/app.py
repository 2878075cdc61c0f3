"""Flask: ``gunicorn --threads 8 examples.flask.app:app`` from the repository root."""

from __future__ import annotations

from flask import Flask, abort, request

from examples import settings
from examples.accounts import Accounts, AccountsUnavailable, WrongPassword
from examples.answers import health, summary
from handstamp import LoginRefused
from handstamp.blocking import call
from handstamp.flask import SessionAuth, current_session, login_required, session_auth

accounts = Accounts(settings.database_url())
sessions = settings.sessions()  # Sessions(dsn, secrets=…, shape=…, policy=…)
app = Flask(__name__)
SessionAuth(app, sessions, cookies=settings.cookies())


@app.post("/login")
def login() -> tuple[str, int]:
    username, password = request.form.get("username", ""), request.form.get("password", "")
    remember = request.form.get("remember") in {"1", "on", "true", "yes"}
    try:
        user_id = call(accounts.verify, username, password)
        session_auth.login(user_id, remember=remember)
    except (WrongPassword, LoginRefused):
        abort(401, "wrong username or password")
    return "", 204


@app.post("/logout")
def logout() -> tuple[str, int]:
    session_auth.logout()
    return "", 204


@app.get("/me")
@login_required
def me() -> dict[str, str | None]:
    user_id, session_id = current_session.user_id, current_session.id
    username = call(accounts.username, user_id)
    return {"user_id": user_id, "session_id": session_id, "username": username}


@app.get("/sessions")
@login_required
def list_sessions() -> list[dict[str, object]]:
    return list(map(summary, session_auth.list_sessions()))


@app.post("/sessions/<id>/revoke")
@login_required
def revoke(id: str) -> tuple[str, int]:
    if not session_auth.revoke(id):
        abort(404)
    return "", 204


@app.post("/sessions/revoke-others")
@login_required
def revoke_others() -> tuple[str, int]:
    session_auth.revoke_others()
    return "", 204


@app.get("/public")
def public() -> dict[str, str]:
    return {"hello": "world"}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return call(health, sessions)


@app.errorhandler(AccountsUnavailable)
def unavailable(exc: AccountsUnavailable) -> tuple[str, int, dict[str, str]]:
    return "temporarily unavailable", 503, {"Retry-After": "1"}
