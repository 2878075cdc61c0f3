"""The plugin's fixtures, also where handstamp runs from its source."""

from __future__ import annotations

from typing import Any

import pytest

from handstamp_pytest import handstamp_clock as handstamp_clock
from handstamp_pytest import handstamp_dsn as handstamp_dsn
from handstamp_pytest import handstamp_events as handstamp_events
from handstamp_pytest import handstamp_policy as handstamp_policy
from handstamp_pytest import handstamp_sessions as handstamp_sessions
from handstamp_pytest import handstamp_template_dsn as handstamp_template_dsn


@pytest.fixture(scope="session")
def handstamp_postgres(postgres: Any) -> str:
    """The server of the whole run; `test_databases.py` starts the one of its users."""
    return str(postgres.dsn())
