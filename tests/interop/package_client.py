"""The npm packages, installed once into pytest's cache, and a process that runs them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OLDEST_NODE = 20
_INSTALL = ("install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")


class Missing(Exception):
    """Why the packages cannot be run here."""


def install(cache: Path) -> Path:
    """A folder with the packages and the script; raises :class:`Missing`."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise Missing("node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0] or 0) < OLDEST_NODE:
        raise Missing(f"node {version.strip()} is older than {OLDEST_NODE}")
    manifest = (HERE / "package.json").read_bytes()
    folder = cache / hashlib.sha256(manifest).hexdigest()[:16]
    if not folder.exists():
        _install(npm, manifest, folder)
    shutil.copy(HERE / "client.mjs", folder)
    return folder


def _install(npm: str, manifest: bytes, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        fresh = Path(made) / "fresh"
        fresh.mkdir()
        (fresh / "package.json").write_bytes(manifest)
        ran = subprocess.run([npm, *_INSTALL], cwd=fresh, capture_output=True, text=True)
        if ran.returncode:
            raise Missing(f"npm could not install the packages: {ran.stderr[-500:]}")
        if not folder.exists():  # another run may have been faster
            os.replace(fresh, folder)


class PackageClient:
    """``@supabase/ssr`` as a server would use it, one request at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(
        self,
        operation: str,
        url: str,
        *,
        cookie: str = "",
        argument: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """What the package answers, and the Set-Cookie lines and headers it wrote."""
        request = {"operation": operation, "url": url, "cookie": cookie}
        request |= {"argument": argument, "options": options}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "thrown" not in answer, answer["thrown"]
        return answer


@contextmanager
def run_client(folder: Path) -> Iterator[PackageClient]:
    """Run the script; end it. Its warnings about broken cookies go nowhere."""
    node = shutil.which("node")
    assert node is not None
    with subprocess.Popen(
        [node, "client.mjs"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield PackageClient(process)
        assert process.stdin is not None
        process.stdin.close()
