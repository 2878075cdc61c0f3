"""Every link between the pages of this project leads to a file, and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
LINKS = sorted(
    (str(page.relative_to(ROOT)), link)
    for page in PAGES
    for link in set(re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")))
    if not re.match(r"[a-z]+:", link)
)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_pages_have_links() -> None:
    """The expression above finds them."""
    assert len(LINKS) > 50


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: str, link: str) -> None:
    """Relative to the page, as a reader follows it."""
    path, _, fragment = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert not fragment or fragment in anchors(target)
