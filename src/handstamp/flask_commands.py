"""``flask handstamp``: what an operator does with the sessions of an application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar, cast

import click
from flask import current_app
from flask.cli import AppGroup

from handstamp.blocking import call
from handstamp.core.records import masked
from handstamp.engine.sessions import Sessions
from handstamp.errors import HandstampError
from handstamp.pallets import EXTENSION, Extension

P = ParamSpec("P")
T = TypeVar("T")

commands = AppGroup("handstamp", help="Look at the sessions of your users, and end them.")


def _sessions() -> Sessions:
    return cast(Extension, current_app.extensions[EXTENSION]).sessions


def _ask(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return call(function, *args, **kwargs)
    except HandstampError as exc:
        raise click.ClickException(str(exc)) from None


@commands.command("list")
@click.argument("user_id")
def list_sessions(user_id: str) -> None:
    """List the live sessions of a user: id, last activity, network."""
    for session in _ask(_sessions().list_for_user, user_id):
        seen = session.last_activity_at or session.created_at
        network = masked(session.address)
        click.echo(f"{session.id}  {seen.isoformat(timespec='seconds')}  {network}")


@commands.command("revoke")
@click.argument("session_id")
@click.option("--reason", default="revoked by an operator", show_default=True)
def revoke(session_id: str, reason: str) -> None:
    """End one session."""
    if not _ask(_sessions().revoke, session_id, reason=reason):
        raise click.ClickException("there is no live session of this id")
    click.echo("ended")


@commands.command("revoke-user")
@click.argument("user_id")
@click.option("--reason", default="revoked by an operator", show_default=True)
def revoke_user(user_id: str, reason: str) -> None:
    """End every session of a user."""
    click.echo(f"ended {_ask(_sessions().revoke_user, user_id, reason=reason)}")


@commands.command("prune")
def prune() -> None:
    """Delete the rows of sessions that died longer ago than the policy keeps them."""
    click.echo(f"deleted {_ask(_sessions().prune)}")
