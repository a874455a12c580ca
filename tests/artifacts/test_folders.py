"""Artefact folders: whole or refused, and an old one survives whatever goes wrong while a new one is made."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec.artifacts import folders as artifacts
from genrec.artifacts.folders import (
    MANIFEST,
    atomic_folder,
    fingerprint,
    is_current,
    open_artifact,
    read_json,
    recover,
    verified_meanwhile,
    write_json,
)
from genrec.errors import UserError, machine_limit


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "stage"
    make(target, "first")
    return target


def make(target, text, key="key"):
    with atomic_folder(target, "thing", key, {"note": text}) as work:
        (work / "sub").mkdir()
        (work / "sub" / "data.txt").write_text(text)
        (work / "other.bin").write_bytes(bytes(100))


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def refused(folder, words, verify=False, kind="thing"):
    with pytest.raises(UserError, match=words) as error:
        open_artifact(folder, kind, verify)
    assert len(str(error.value).splitlines()) == 1
    assert verify or not is_current(folder, kind, "key")


def test_a_whole_folder_opens(folder):
    manifest = open_artifact(folder, "thing", verify=True)
    assert manifest["info"] == {"note": "first"} and set(manifest["files"]) == {"sub/data.txt", "other.bin"}
    assert is_current(folder, "thing", "key") and not is_current(folder, "thing", "other")


def test_missing(tmp_path):
    refused(tmp_path / "stage", "does not exist")


def test_half_written(folder):
    (folder / MANIFEST).unlink()
    refused(folder, "half-written")


def test_manifest_cut_short(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:50])
    refused(folder, "cannot be read")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version(folder, version):
    edit_manifest(folder, format_version=version)
    refused(folder, f"format version {version}")


def test_another_kind(folder):
    refused(folder, "holds a thing, not a model", kind="model")


def test_a_file_is_missing(folder):
    (folder / "sub" / "data.txt").unlink()
    refused(folder, r"data\.txt is missing")


def test_a_file_is_cut_short(folder):
    (folder / "other.bin").write_bytes(bytes(99))
    refused(folder, r"other\.bin is not what was written")


def test_a_changed_byte_is_found_when_asked(folder):
    (folder / "other.bin").write_bytes(bytes(99) + b"x")
    assert open_artifact(folder, "thing")  # the quick look compares sizes alone
    refused(folder, r"other\.bin is not what was written", verify=True)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_a_changed_byte_is_found_while_the_folder_is_read(folder, error):
    with verified_meanwhile(folder, "thing") as manifest:
        assert manifest["key"] == "key"
    (folder / "other.bin").write_bytes(bytes(99) + b"x")
    with pytest.raises(UserError, match=r"other\.bin is not what was written"), verified_meanwhile(folder, "thing"):
        if error:  # as reading the changed file may raise
            raise error


def test_an_error_of_a_whole_folder_stays_what_it_is(folder):
    with pytest.raises(RuntimeError, match="own"), verified_meanwhile(folder, "thing"):
        raise RuntimeError("own")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_the_old_folder(folder, error):
    with pytest.raises(error), atomic_folder(folder, "thing", "new") as work:
        (work / "data.txt").write_text("second")
        raise error
    assert (
        open_artifact(folder, "thing", verify=True)["key"] == "key"
        and (folder / "sub" / "data.txt").read_text() == "first"
    )
    assert [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_an_exception_inside_the_first_time_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "stage", "thing", "new"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_new_folder_replaces_all_of_the_old_one(folder):
    (folder / "stray.txt").write_text("of an older version")
    make(folder, "second", "next")
    assert open_artifact(folder, "thing", verify=True)["key"] == "next" and not (folder / "stray.txt").exists()
    assert (folder / "sub" / "data.txt").read_text() == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_what_is_being_written_is_not_visible(folder):
    with atomic_folder(folder, "thing", "new") as work:
        (work / "sub").mkdir()
        assert work != folder and open_artifact(folder, "thing")["key"] == "key"
    assert open_artifact(folder, "thing")["key"] == "new"


def test_info_may_be_filled_inside(tmp_path):
    info = {}
    with atomic_folder(tmp_path / "stage", "thing", "key", info):
        info["epochs"] = 3
    assert open_artifact(tmp_path / "stage", "thing")["info"] == {"epochs": 3}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        loop: list = []
        loop.append(loop)
        write_json(path, loop)
    assert read_json(path) == {"a": 1}
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "b.json")


def test_fingerprints():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


KILLED = """
import os, signal, sys
from pathlib import Path
from genrec.artifacts import folders as artifacts
target, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def stop(self, other):
    if moment == "before the first rename" or moment == "between the renames" and str(other) == str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, other)
Path.rename = stop
artifacts.shutil.rmtree = lambda *a, **k: moment == "before the old one goes" and os.kill(os.getpid(), signal.SIGKILL)
with artifacts.atomic_folder(target, "thing", "new") as place:
    (place / "data.txt").write_text("second")
    if moment == "while it is filled":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "moment", ["while it is filled", "before the first rename", "between the renames", "before the old one goes"]
)
@pytest.mark.parametrize("then", ["open", "make"])
def test_a_kill_at_any_moment(folder, moment, then):
    result = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], check=False)
    assert result.returncode == -signal.SIGKILL and len(list(folder.parent.iterdir())) == 2
    if then == "make":
        make(folder, "third", "third")
    assert is_current(
        folder, "thing", "third" if then == "make" else "new" if moment == "before the old one goes" else "key"
    )
    assert open_artifact(folder, "thing", verify=True)
    assert [path.name for path in folder.parent.iterdir()] == ["stage"], "something is left of the killed process"


def test_a_living_process_keeps_its_temporary_folder(folder):
    with atomic_folder(folder, "thing", "slow") as slow:
        make(folder, "quick", "quick")
        recover(folder)
        assert slow.is_dir() and open_artifact(folder, "thing")["key"] == "quick"
        (slow / "data.txt").write_text("slow")
    assert open_artifact(folder, "thing")["key"] == "slow"


def test_a_folder_set_aside_by_a_living_process_is_left_to_it(folder):
    with atomic_folder(folder, "thing", "new") as work:
        folder.rename(work.with_suffix(".old"))
        assert not is_current(folder, "thing", "key") and work.with_suffix(".old").is_dir()
        (work / "data.txt").write_text("second")
    assert is_current(folder, "thing", "new") and [path.name for path in folder.parent.iterdir()] == ["stage"]


def test_a_full_disk_that_a_library_does_not_name(folder, monkeypatch):
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError) as error, atomic_folder(folder, "thing", "new"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    assert error.value.errno == errno.ENOSPC and "the disk is full" in machine_limit(error.value)
    assert is_current(folder, "thing", "key")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y.npy"), "the disk is full (/x/y.npy)"),
        (OSError("1000000 requested and 131056 written"), "the disk is full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError(), "out of memory"),
        (np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(np.int64)), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"), "out of memory"),
        (RuntimeError("something else"), None),
        (FileNotFoundError(errno.ENOENT, "no"), None),
    ],
)
def test_limits_of_the_machine_are_one_line(error, words):
    wrapped = ValueError("a library's own")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        line = machine_limit(one)
        assert (
            line is None
            if words is None
            else line.startswith(words) and "\n" not in line and "run the same command again" in line
        )
