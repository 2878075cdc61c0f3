"""A Flask application with a WebSocket of flask-sock, as a WSGI server imports it."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from flask_sock import Sock

from handstamp.config import Cookies
from handstamp.engine.sessions import Sessions
from handstamp.flask import SessionAuth, session_auth

app = Flask(__name__)
sessions = Sessions(os.environ["DATABASE_URL"], secret=os.environ["HANDSTAMP_SECRET"])
SessionAuth(app, sessions, cookies=Cookies.insecure())
sock = Sock(app)


@app.get("/")
def ready() -> str:
    return "ready"


@app.get("/login")
def login() -> str:
    return session_auth.login(request.args["user"]).user_id


@sock.route("/ws")
def echo(ws: Any) -> None:
    """Send the user of the socket, then do what the client asks."""
    ws.send(session_auth.user_id or "anonymous")
    if ws.receive() == "sign out everywhere":
        sessions_ended = session_auth.revoke_others()
        ws.send(f"ended {sessions_ended}")


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
