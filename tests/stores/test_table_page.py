"""docs/table.md: the shapes to copy are those that are tested."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from handstamp.stores.shapes import TableShape, UsersTable
from tests.support.foreign_tables import FOREIGN

PAGE = (Path(__file__).parents[2] / "docs" / "table.md").read_text("utf-8")


def test_the_shapes_on_the_page_are_those_of_the_foreign_tables() -> None:
    """Each of the six, in order, field by field."""
    names = {"TableShape": TableShape, "UsersTable": UsersTable}
    blocks = re.findall(r"```python\n(TableShape\(.*?)```", PAGE, re.DOTALL)
    shapes = [eval(block, names) for block in blocks]
    assert shapes == [table.shape for table in FOREIGN.values()]


def test_the_page_names_every_field_of_a_shape() -> None:
    """Whoever describes a table finds each field."""
    missing = [f.name for f in fields(TableShape) if f"`{f.name}`" not in PAGE]
    missing += [f.name for f in fields(UsersTable) if f"`{f.name}`" not in PAGE]
    assert missing == []
