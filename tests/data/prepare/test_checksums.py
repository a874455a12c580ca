"""The identity of a log is its content; the index saves reading it, and never hides an edit."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from genrec.config.load import load_config
from genrec.data.prepare import checksums
from genrec.data.prepare.checksums import ChecksumIndex
from genrec.data.prepare.pipeline import prepare

LONG_AGO = 1_000_000_000


@pytest.fixture
def reads(monkeypatch):
    """The files that were read for their checksum."""
    files, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        checksums.hashlib, "file_digest", lambda stream, kind: files.append(stream.name) or digest(stream, kind)
    )
    return files


@pytest.fixture
def settled(monkeypatch):
    """A clock that is an hour ahead: every file was written long before."""
    now = checksums.time.time
    monkeypatch.setattr(checksums.time, "time", lambda: now() + 3600)


def test_content_is_the_identity(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("u,i,1\n")
        os.utime(tmp_path / name / "log.csv", (LONG_AGO, LONG_AGO + len(name)))
    index = ChecksumIndex()
    first = index.fingerprint(tmp_path / "here" / "log.csv")
    assert first == index.fingerprint(tmp_path / "there" / "log.csv")
    whole = index.fingerprint(tmp_path / "here")
    (tmp_path / "here" / "more.csv").write_text("")
    assert index.fingerprint(tmp_path / "here") != whole


def test_only_new_and_changed_files_are_read(tmp_path, reads, settled):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(name)
    index = ChecksumIndex(tmp_path / "index.json")
    first = [index.fingerprint(tmp_path / name) for name in ("a.csv", "b.csv")]
    index.save()
    assert len(reads) == 2
    (tmp_path / "b.csv").write_text("B.csv")  # as long as before, and its time set back: the change still shows
    stat = (tmp_path / "a.csv").stat()
    os.utime(tmp_path / "b.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "c.csv").write_text("c")
    later = ChecksumIndex(tmp_path / "index.json")
    again = [later.fingerprint(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv")]
    assert [os.path.basename(name) for name in reads[2:]] == ["b.csv", "c.csv"]
    assert again[0] == first[0] and again[1] != first[1]


def test_a_file_that_was_just_written_is_read_again(tmp_path, reads):
    (tmp_path / "a.csv").write_text("1")
    index = ChecksumIndex()
    index.checksum(tmp_path / "a.csv"), index.checksum(tmp_path / "a.csv")
    assert len(reads) == 2


def test_a_broken_index_is_made_again(tmp_path, settled):
    (tmp_path / "a.csv").write_text("1")
    for text in ("{", "[1, 2]", '{"x": 1}'):
        (tmp_path / "index.json").write_text(text)
        index = ChecksumIndex(tmp_path / "index.json")
        assert index.fingerprint(tmp_path / "a.csv") == ChecksumIndex().fingerprint(tmp_path / "a.csv")
        index.save()
        assert len(ChecksumIndex(tmp_path / "index.json")._known) >= 1


def test_preparing_twice_reads_the_log_once_and_a_moved_log_is_the_same(tmp_path, reads, settled):
    folder = tmp_path / "log"
    folder.mkdir()
    lines = "".join(f"u{n % 3},i{n % 4},{n}\n" for n in range(12))
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + lines)
    config = load_config(None, ["data.reader=table", f"data.path={folder}", "data.options.events=events.csv"])

    def log_reads():
        return sum(name.endswith("events.csv") for name in reads)

    prepare(config, tmp_path / "dataset")
    made = (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns
    assert log_reads() == 1
    prepare(config, tmp_path / "dataset")
    assert log_reads() == 1
    shutil.copytree(folder, tmp_path / "moved")
    config.data.path = str(tmp_path / "moved")
    prepare(config, tmp_path / "dataset")
    assert log_reads() == 2 and (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns == made
