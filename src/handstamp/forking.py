"""What a forked child does with what it inherited: it starts over, and lets go of nothing.

The child has copies of its parent's sockets and of the loop that watches them, and closing
a connection or dropping it from that loop would speak for the parent: the list of watched
sockets is one, in the kernel. So what was open at the fork is pinned, for as long as the
child lives, its end included.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """Something that holds connections, locks or buffers of its process."""

    def start_over(self) -> None:
        """Be as new, in a child, and pin what was open."""


_inherited: WeakSet[Inherited] = WeakSet()


def start_over_in_children(thing: Inherited) -> None:
    """Call ``thing.start_over()`` in every forked child, as long as anyone uses it."""
    _inherited.add(thing)


def pin(thing: object) -> None:
    """Never free this, not even at the end, when the interpreter frees everything."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _start_over() -> None:
    for thing in list(_inherited):
        thing.start_over()


os.register_at_fork(after_in_child=_start_over)
