"""Atomic folders with a manifest: what made them, from what, and whether they are whole.

A stage writes into a temporary folder beside its target and renames it at the end; a reader therefore sees a whole folder or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> list:
    """Name, size and modification time of every file of a file or folder: cheap, and enough to notice a change."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_folder(target: Path, kind: str, key: str, info: dict | None = None) -> Iterator[Path]:
    """Yield a temporary folder; on success write its manifest and rename it to ``target`` (an older one is replaced).

    ``key`` is the fingerprint of everything the content depends on. ``info`` (filled by the caller before the end) is kept in the
    manifest. A failure inside leaves ``target`` as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "key": key,
            "created": int(time.time()),
            "files": {str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": _checksum(p)} for p in files},
            "info": info or {},
        }
        manifest["digest"] = manifest_digest(manifest)
        write_json(temporary / MANIFEST, manifest)
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def manifest_digest(manifest: dict) -> str:
    """The checksum of the manifest itself (all but its own ``digest``): what it says of the other files can then be believed."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file, so that a stop never leaves half a file."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON; ``UserError`` when the file is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that makes it again (genrec run CONFIG)") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and run again") from error


def open_artifact(folder: Path, kind: str, verify: bool = False) -> dict:
    """The manifest of a whole folder of the right kind.

    Raises ``UserError`` when the folder is missing, half-written, of another kind or format version, or when a file is missing,
    has another size or (with ``verify``) another checksum; ``verify`` also checks the manifest itself.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; make it with: genrec run CONFIG")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it is half-written or not a genrec folder; delete it and run again")
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{folder} has format version {version}, this genrec reads {FORMAT_VERSION}; make it again with this version")
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} holds a {manifest.get('kind')}, not a {kind}")
    if verify and "digest" in manifest and manifest["digest"] != manifest_digest(manifest):
        raise UserError(f"{folder / MANIFEST} is not what was written (checksum differs); delete {folder} and make it again")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {folder} and run again")
        if path.stat().st_size != expected["bytes"] or (verify and _checksum(path) != expected["sha256"]):
            raise UserError(f"{path} is not what was written (size or checksum differ); delete {folder} and run again")
    return manifest


def is_current(folder: Path, kind: str, key: str) -> bool:
    """Whether a whole folder made from exactly these inputs is there."""
    try:
        return open_artifact(folder, kind)["key"] == key
    except UserError:
        return False
