"""Atomic folders with a manifest: the key of what they were made from, and the checksum of every file.

A stage writes into a temporary folder next to its target and renames it at the end, so a reader sees a whole folder or
none. The next process that looks at a target cleans up what a killed process left there.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec.errors import UserError

log = logging.getLogger(__name__)
FORMAT_VERSION = 4
MANIFEST = "manifest.json"


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_folder(target: Path, kind: str, key: str, info: dict | None = None) -> Iterator[Path]:
    """Yield a temporary folder; on success write its manifest and rename it to ``target``, replacing an older folder.

    ``key`` is the fingerprint of everything the content depends on. ``info``, which the caller may fill before the end,
    is kept in the manifest. A failure or a kill at any moment leaves ``target`` as it was, see ``recover``. All is
    synced to the disk before the old folder is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    temporary, lock = _claim(target)
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        with ThreadPoolExecutor(2) as pool:  # hashing leaves Python's lock
            sums = dict(zip(files, pool.map(_checksum, files), strict=True))
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "key": key,
            "created": int(time.time()),
            "files": {str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": sums[p]} for p in files},
            "info": info or {},
        }
        manifest["digest"] = manifest_digest(manifest)
        write_json(temporary / MANIFEST, manifest)
        for path in (*files, *(p for p in temporary.rglob("*") if p.is_dir()), temporary):
            _sync(path)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if shutil.disk_usage(target.parent).free < 1 << 20:  # some libraries do not say so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _claim(target: Path) -> tuple[Path, int | None]:
    """A new temporary folder next to ``target``, and the lock of its process (None without file locks)."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        temporary.mkdir()
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return temporary, None
            continue  # another process removed it as abandoned before it was locked
        if temporary.is_dir():
            return temporary, lock
        os.close(lock)


def _abandoned(temporary: Path) -> bool:
    """Whether the process that made a temporary folder is gone: the system frees the lock of a killed one."""
    try:
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def recover(target: Path) -> None:
    """Remove what killed processes left next to ``target``.

    Half-written folders are removed. A folder that was set aside before its successor was in place is restored.
    """
    name = glob.escape(target.name)
    for temporary in target.parent.glob(f".{name}.*.partial"):
        if _abandoned(temporary):
            log.info("removed %s, left by a process that was stopped", temporary)
            shutil.rmtree(temporary, ignore_errors=True)
    for old in target.parent.glob(f".{name}.*.old"):
        if old.with_suffix(".partial").exists():
            continue  # its process is alive, between two renames
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            continue
        try:
            old.rename(target)
            log.info("restored %s, set aside by a process that was stopped", target)
        except OSError:  # another process was faster
            pass


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest_digest(manifest: dict) -> str:
    """The checksum of a manifest without its own ``digest``, which protects the checksums it lists."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file with a unique name: a kill or a second writer never leaves half a file."""
    text = json.dumps(value, indent=1, default=str) + "\n"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.write_text(text)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON; ``UserError`` when the file is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that makes it again (genrec run CONFIG)") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and run again") from error


def open_artifact(folder: Path, kind: str, verify: bool = False) -> dict:
    """The manifest of a complete folder of the right kind.

    Raises ``UserError`` if the folder is missing, half-written, of another kind or format version, or if a file is
    missing or has another size. ``verify`` also compares the checksums of all files and of the manifest.
    """
    if not folder.is_dir():
        recover(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; make it with: genrec run CONFIG")
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}: it is half-written or not a genrec folder; delete it and run again"
        )
    check_version(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} holds a {manifest.get('kind')}, not a {kind}")
    if verify:
        _check_digest(folder, manifest)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {folder} and run again")
        if path.stat().st_size != expected["bytes"] or (verify and _checksum(path) != expected["sha256"]):
            raise _changed(folder, path)
    return manifest


@contextmanager
def verified_meanwhile(folder: Path, kind: str) -> Iterator[dict]:
    """As ``open_artifact`` with ``verify``, but a thread compares the checksums of files while the context lasts.

    The end of the context waits for it. A changed file is named before any error that reading it may have caused.
    """
    manifest = open_artifact(folder, kind)
    _check_digest(folder, manifest)
    with ThreadPoolExecutor(1) as pool:  # hashing leaves Python's lock
        sums = pool.map(_checksum, [folder / name for name in manifest["files"]])
        try:
            yield manifest
        finally:
            for (name, expected), found in zip(manifest["files"].items(), sums, strict=True):
                if found != expected["sha256"]:
                    raise _changed(folder, folder / name)


def _check_digest(folder: Path, manifest: dict) -> None:
    if "digest" in manifest and manifest["digest"] != manifest_digest(manifest):
        raise UserError(
            f"{folder / MANIFEST} is not what was written (checksum differs); delete {folder} and make it again"
        )


def _changed(folder: Path, path: Path) -> UserError:
    return UserError(f"{path} is not what was written (size or checksum differ); delete {folder} and run again")


def check_version(folder: Path) -> None:
    """Raise ``UserError`` if a folder was written in another format than this version of genrec reads."""
    if not (folder / MANIFEST).is_file():
        return
    version = read_json(folder / MANIFEST).get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {version}, this genrec reads {FORMAT_VERSION}; "
            "make it again with this version: genrec run CONFIG"
        )


def is_current(folder: Path, kind: str, key: str) -> bool:
    """Whether a complete folder with this key exists. Leftovers of killed processes are cleaned up."""
    recover(folder)
    try:
        return open_artifact(folder, kind)["key"] == key
    except UserError:
        return False
