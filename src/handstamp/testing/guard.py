"""What ends a server when its owner was killed and could not do it.

A shell waits for a line on a pipe that only the owner can write to. The line means
that all is well; the end of the pipe means that the owner is gone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# $1 the server's data folder, $2 a folder to remove afterwards, or nothing
_SCRIPT = """
read -r _ && exit
read -r pid _ < "$1/postmaster.pid" && kill -INT "$pid"
tries=0
while [ -e "$1/postmaster.pid" ] && [ "$tries" -lt 100 ]; do
  sleep 0.1
  tries=$((tries + 1))
done
[ -n "$2" ] || exit
# An orphaned initdb may still be writing.
rm -rf "$2" || { sleep 5; rm -rf "$2"; }
"""


class Guard:
    """Watches over the server in `data_dir` from now on.

    When the process that made the guard dies before it calls `dismiss`, the server
    is stopped, and `removed_at_end` is removed with all that is in it.
    """

    def __init__(self, data_dir: Path, removed_at_end: Path | None) -> None:
        self._owner = os.getpid()
        self._shell = subprocess.Popen(  # noqa: S603 - a fixed script
            ["/bin/sh", "-c", _SCRIPT, "sh", data_dir, removed_at_end or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of a terminal's Ctrl-C
        )

    @property
    def is_ours(self) -> bool:
        """Whether this process made the guard, and not one it was forked from."""
        return self._owner == os.getpid()

    def dismiss(self) -> None:
        """Send the guard home: the owner takes care itself. Twice is fine."""
        if self.is_ours and self._shell.returncode is None:
            self._shell.communicate(b"\n")
