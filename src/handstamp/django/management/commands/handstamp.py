"""``manage.py handstamp``: list, revoke and prune sessions, and check the database."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from handstamp.core.models import mask_address
from handstamp.django.handles import call
from handstamp.django.settings import get_sessions
from handstamp.errors import HandstampError

_TIMEOUT = 5.0
"""Seconds that ``check`` waits for the proof that notifications arrive."""


class Command(BaseCommand):
    """One command with five parts."""

    help = "Sessions: prune, sessions, revoke, revoke-user, check."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add each part with its arguments."""
        parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
        parts.add_parser("prune", help="delete the rows of sessions that ended long ago")
        listing = parts.add_parser("sessions", help="list the live sessions of a user")
        listing.add_argument("user")
        one = parts.add_parser("revoke", help="end one session")
        one.add_argument("session")
        every = parts.add_parser("revoke-user", help="end all sessions of a user")
        every.add_argument("user")
        for part in (one, every):
            part.add_argument("--reason", default="revoked by an administrator")
        parts.add_parser(
            "check", help="check the database and the notifications of revocations"
        )

    def handle(self, *, part: str, **options: Any) -> None:
        """Run one part. Raises :class:`CommandError` with the reason if it fails."""
        try:
            getattr(self, "_" + part.replace("-", "_"))(options)
        except HandstampError as exc:
            raise CommandError(str(exc)) from None

    def _prune(self, options: dict[str, Any]) -> None:
        self.stdout.write(f"deleted {call(get_sessions().prune)}")

    def _sessions(self, options: dict[str, Any]) -> None:
        for session in call(get_sessions().list_for_user, options["user"]):
            seen = session.last_activity_at or session.created_at
            address = mask_address(session.address)
            self.stdout.write(f"{session.id}  {seen:%Y-%m-%d %H:%M %Z}  {address}")

    def _revoke(self, options: dict[str, Any]) -> None:
        revoke, session_id = get_sessions().revoke, options["session"]
        if not call(revoke, session_id, reason=options["reason"]):
            raise CommandError("there is no live session of this id")
        self.stdout.write("revoked 1")

    def _revoke_user(self, options: dict[str, Any]) -> None:
        revoke, user_id = get_sessions().revoke_user, options["user"]
        self.stdout.write(f"revoked {call(revoke, user_id, reason=options['reason'])}")

    def _check(self, options: dict[str, Any]) -> None:
        sessions = get_sessions()
        call(sessions.ping)
        self.stdout.write("database: ok")
        until = time.monotonic() + _TIMEOUT
        while sessions.stats().listener != "listening" and time.monotonic() < until:
            time.sleep(0.05)
        stats = sessions.stats()
        self.stdout.write(f"notifications: {stats.listener}")
        if stats.listener != "listening":
            raise CommandError("revocations are noticed late: no notification arrives")
        delay = "noticed at once" if stats.all_writers_notify else "within max_staleness"
        self.stdout.write(f"other writers: {delay}")
