"""What a forked child does with objects that it has from its parent.

The child has copies of its parent's sockets and of the event loop that watches them. There
is one list of watched sockets, in the kernel, for both processes: if the child closed a
connection or removed it from the loop, it would do so for the parent too.

Rule 1. After a fork every :class:`ForkAware` object resets itself. It closes nothing.
Rule 2. What was open at the fork is pinned: it is never freed in the child, not even when
the child ends.
Rule 3. Python reports a fork (``os.register_at_fork``). uWSGI forks without it unless it is
configured to, so every call into the engine compares the process id too.
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
    """An object that holds connections, locks or buffers of its process."""

    def reset_after_fork(self) -> None:
        """Return to the state of a new object, in a child, and pin what was open."""

    async def close(self) -> None:
        """Close what is open on this event loop; do nothing on another one."""


_objects: WeakSet[ForkAware] = WeakSet()
_lock = threading.Lock()
_pid = os.getpid()


def reset_in_forked_children(thing: ForkAware) -> None:
    """Call ``thing.reset_after_fork()`` in every forked child, as long as it is in use."""
    _objects.add(thing)


def fork_aware_objects() -> list[ForkAware]:
    """Return all objects of this process that a fork resets."""
    return list(_objects)


def pin(thing: object) -> None:
    """Never free this object, not even when the interpreter ends and frees all others."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def detect_fork() -> None:
    """Reset everything if this process was forked without Python's hook (rule 3)."""
    if os.getpid() == _pid:
        return
    with _lock:
        if os.getpid() != _pid:
            _reset_all()


def _reset_all() -> None:
    global _pid
    for thing in fork_aware_objects():
        try:
            thing.reset_after_fork()
        except Exception:
            # The other objects must be reset all the same.
            logger.exception("not reset after a fork", extra={"action": "fork_failed"})
    _pid = os.getpid()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _reset_all()


os.register_at_fork(after_in_child=_after_fork)
