"""What a forked child does with what it inherited: it starts over, and lets go of nothing.

The child has copies of its parent's sockets and of the loop that watches them, and closing
a connection or dropping it from that loop would speak for the parent: the list of watched
sockets is one, in the kernel. So what was open at the fork is pinned, for as long as the
child lives, its end included.

Python tells us of a fork. uWSGI forks without telling Python, unless it is asked to, so
whoever crosses into the engine looks at the process id as well.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from typing import Protocol
from weakref import WeakSet

logger = logging.getLogger("handstamp")


class ForkAware(Protocol):
    """Something that holds connections, locks or buffers of its process."""

    def reset_after_fork(self) -> None:
        """Be as new, in a child, and pin what was open."""

    async def close(self) -> None:
        """Let go of what is open on this event loop; elsewhere that does nothing."""


_inherited: WeakSet[ForkAware] = WeakSet()
_lock = threading.Lock()
_pid = os.getpid()


def reset_in_forked_children(thing: ForkAware) -> None:
    """Call ``thing.start_over()`` in every forked child, as long as anyone uses it."""
    _inherited.add(thing)


def everything() -> list[ForkAware]:
    """Whatever there is in this process that would start over."""
    return list(_inherited)


def pin(thing: object) -> None:
    """Never free this, not even at the end, when the interpreter frees everything."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def detect_fork() -> None:
    """Start over if this process was forked and nobody said so."""
    if os.getpid() == _pid:
        return
    with _lock:
        if os.getpid() != _pid:
            _reset_all()


def _reset_all() -> None:
    global _pid
    for thing in everything():
        try:
            thing.reset_after_fork()
        except Exception:
            # It is one of several; the others must not go on with the parent's.
            logger.exception("a child did not start over", extra={"action": "fork_failed"})
    _pid = os.getpid()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _reset_all()


os.register_at_fork(after_in_child=_after_fork)
