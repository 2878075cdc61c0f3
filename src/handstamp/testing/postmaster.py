"""What ``postmaster.pid`` says, and whether it is still true."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# No process can have this number (Linux allows up to 2**22).
_NOBODYS_PID = 2**22 + 1


def running_pid(data_dir: Path) -> int | None:
    """Give the process id of the server that runs on `data_dir`, if one does."""
    pid = _recorded_pid(data_dir)
    if pid is None or not _is_server_of(pid, data_dir):
        return None
    return pid


def disarm_stale_pid(data_dir: Path) -> None:
    """Rewrite the process id that a killed server left behind.

    PostgreSQL takes it for alive when another process of the same account has the
    number by now, or when nobody has buried the dead process: both are usual in
    containers. The rest of the file stays, so that PostgreSQL still checks for
    orphans of the old server. Call it only when no server runs.
    """
    if _recorded_pid(data_dir) is None:
        return
    file = data_dir / "postmaster.pid"
    _, _, rest = file.read_text().partition("\n")
    file.write_text(f"{_NOBODYS_PID}\n{rest}")


def _recorded_pid(data_dir: Path) -> int | None:
    try:
        return int((data_dir / "postmaster.pid").read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def _is_server_of(pid: int, data_dir: Path) -> bool:
    """Say whether the process is a live server that works in `data_dir`."""
    try:
        os.kill(pid, 0)
        if sys.platform != "linux":
            return True
        # A server's working folder is its data folder; a dead, unburied one has
        # none, and a process that came to the same number has another.
        return os.path.samefile(f"/proc/{pid}/cwd", data_dir)
    except OSError:
        return False
