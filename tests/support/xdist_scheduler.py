"""A scheduler for pytest-xdist: tests that share a costly server run in one worker."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

EXAMPLE = re.compile(r"[a-z]+-(?:asgi|wsgi)-(?:ulid|uuid|supabase)")


class Scheduling(LoadScopeScheduling):
    """``--dist loadscope`` with the scopes of :func:`scope_of`."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Returns the scope of a test: its module, with two exceptions. In tests/examples it is
    the example, whose servers are started once. In the contract of the stores, which has a
    thousand tests, it is the test function."""
    module, _, name = nodeid.partition("::")
    if module == "tests/stores/test_contract.py":
        return nodeid.partition("[")[0]
    examples = EXAMPLE.findall(name)
    if module.startswith("tests/examples/") and len(examples) == 1:
        return f"tests/examples/{examples[0]}"
    return module
