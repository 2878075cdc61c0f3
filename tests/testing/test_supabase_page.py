"""docs/supabase.md: its section on testing is a test that passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from handstamp.starlette import wrap
from tests.support.browsers import TestClient
from tests.support.supabase_clients import sessions_on
from tests.support.supabase_site import site

IMPORTED = TestClient
"""By the page too, which would warn if it were the first."""
PAGE = (Path(__file__).parents[2] / "docs" / "supabase.md").read_text("utf-8")


def test_the_test_on_the_page_passes(supabase_dsn: str) -> None:
    """With an application that returns the id of its user."""
    section = PAGE.partition("\n## Testing\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    app = wrap(site, sessions_on(supabase_dsn))
    names: dict[str, Any] = {"dsn": supabase_dsn, "app": app}
    exec(block, names)
    names["test_me"]()
