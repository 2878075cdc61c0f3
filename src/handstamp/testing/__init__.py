"""Helpers for the tests of an application: sign a client in, stop time, steal a cookie.

Everything here works on the application's own engine, and only time and outages are
simulated. The pytest fixtures are in ``handstamp_pytest``; databases for tests are in
:mod:`handstamp.testing.databases`.
"""

from __future__ import annotations

from handstamp.testing.databases import add_user as add_user
from handstamp.testing.databases import memory_sessions as memory_sessions
from handstamp.testing.engines import FrozenClock as FrozenClock
from handstamp.testing.engines import Recorded as Recorded
from handstamp.testing.engines import acall as acall
from handstamp.testing.engines import aconcurrently as aconcurrently
from handstamp.testing.engines import call as call
from handstamp.testing.engines import concurrently as concurrently
from handstamp.testing.engines import frozen_clock as frozen_clock
from handstamp.testing.engines import outage as outage
from handstamp.testing.sign_in import SignedIn as SignedIn
from handstamp.testing.sign_in import Stolen as Stolen
from handstamp.testing.sign_in import aassert_revoked as aassert_revoked
from handstamp.testing.sign_in import alogin_as as alogin_as
from handstamp.testing.sign_in import assert_revoked as assert_revoked
from handstamp.testing.sign_in import login_as as login_as
from handstamp.testing.sign_in import steal as steal

__all__ = (
    "FrozenClock",
    "Recorded",
    "SignedIn",
    "Stolen",
    "aassert_revoked",
    "acall",
    "aconcurrently",
    "add_user",
    "alogin_as",
    "assert_revoked",
    "call",
    "concurrently",
    "frozen_clock",
    "login_as",
    "memory_sessions",
    "outage",
    "steal",
)
