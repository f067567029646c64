"""Files that make a plain web server an index, a repository and a registry."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from zipfile import ZipFile

import anyio


def pip_site(folder: Path) -> None:
    """Make `folder` hold an index of Python packages at /simple with one package, tinything."""
    place = folder / "simple" / "tinything"
    place.mkdir(parents=True)
    info = "tinything-1.0.dist-info"
    files = {
        "tinything.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = "tinything-1.0-py3-none-any.whl"
    with ZipFile(place / wheel, "w") as archive:
        for name, text in [*files.items(), (f"{info}/RECORD", record)]:
            archive.writestr(name, text)
    (place / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>')


async def git_site(folder: Path, work: Path) -> None:
    """Make `folder` hold a repository, thing.git, with one file; `work` is for making it."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    await anyio.Path(work).mkdir()
    await anyio.Path(work, "file").write_text("content")
    bare = str(folder / "thing.git")
    for argv in (
        ["git", *identity, "init", "-q", "."], ["git", "add", "file"], ["git", *identity, "commit", "-qm", "x"],
        ["git", "clone", "-q", "--bare", ".", bare], ["git", "-C", bare, "update-server-info"],
    ):  # fmt: skip
        await anyio.run_process(argv, cwd=work)


def npm_site(folder: Path, base: str) -> None:
    """Make `folder`, served at `base`, a registry of npm packages with one package, tinything."""
    folder.mkdir(exist_ok=True)
    package = json.dumps({"name": "tinything", "version": "1.0.0", "main": "index.js"}).encode()
    with tarfile.open(folder / "tinything-1.0.0.tgz", "w:gz") as archive:
        for name, content in (("package.json", package), ("index.js", b"module.exports = 42\n")):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512((folder / "tinything-1.0.0.tgz").read_bytes()).digest()).decode()
    version = {
        "name": "tinything", "version": "1.0.0",
        "dist": {"tarball": f"{base}/tinything-1.0.0.tgz", "integrity": f"sha512-{digest}"},
    }  # fmt: skip
    document = {"name": "tinything", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (folder / "tinything").write_text(json.dumps(document))
