"""Which tests run in one worker, one after the other: those that share what is costly."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

EXAMPLE = re.compile(r"[a-z]+-(?:asgi|wsgi)-(?:ulid|uuid|supabase)")


class Scheduling(LoadScopeScheduling):
    """``--dist loadscope``, with the scopes of :func:`scope_of`."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """A module; of the examples, one of them, for its servers are started once; of the
    contract of the stores, one rule, for there are a thousand tests in that module."""
    module, _, name = nodeid.partition("::")
    if module == "tests/stores/test_contract.py":
        return nodeid.partition("[")[0]
    examples = EXAMPLE.findall(name)
    if module.startswith("tests/examples/") and len(examples) == 1:
        return f"tests/examples/{examples[0]}"
    return module
