"""What ``genrec doctor`` reports: the machine, and whether a run folder or any other artefact is complete and sound."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from genrec import __version__
from genrec.artifacts.folders import MANIFEST, open_artifact, read_json, recover
from genrec.data.dataset import KIND as DATASET
from genrec.data.dataset import TEST, Dataset
from genrec.errors import UserError
from genrec.inference.bundle import is_bundle, open_run
from genrec.runs.run import Run
from genrec.semantic_ids.tokenize import KIND as SEMANTIC_IDS
from genrec.training import checkpoints

STAGES = {
    "dataset": "prepare",
    "semantic_ids": "tokenize",
    "model": "train",
    "candidate_features": "train",
    "reranker": "train",
}
LOW_DISK = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is ``broken``, and what to do about it in ``text``."""

    name: str
    text: str
    broken: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def machine() -> Iterator[tuple[str, str]]:
    """Names and values: versions, devices, free disk and memory."""
    yield "genrec", __version__
    yield "python", platform.python_version()
    for package in ("torch", "lightning", "transformers", "polars", "numpy", "faiss-cpu"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "missing; install genrec again: pip install ."
    yield "device", ", ".join(devices())
    yield "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    page = os.sysconf("SC_PAGE_SIZE")
    yield (
        "memory",
        f"{page * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB, "
        f"{page * os.sysconf('SC_AVPHYS_PAGES') / 2**30:.1f} GiB unused",
    )
    yield "free disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"


def devices() -> list[str]:
    """Each GPU with its memory and whether it has bf16; CPU where there is none."""
    if not torch.cuda.is_available():
        return ["CPU"]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
    return [f"{one.name} ({one.total_memory / 2**30:.0f} GiB, {bf16})" for one in devices]


def check(path: Path) -> Iterator[Finding]:
    """Check a run folder, a bundle, an artefact folder, or a file of one. ``UserError`` for any other path."""
    path = Path(path)
    if path.is_file() and (path.parent / MANIFEST).is_file():
        path = path.parent
    if not path.exists():
        recover(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with: genrec run CONFIG")
    if path.is_dir() and is_bundle(path):
        yield from _bundle(path)
    elif path.is_dir() and (path / MANIFEST).is_file():
        yield _artifact(path)
    elif path.is_dir() and (path / "config.json").is_file():
        yield from _run(Run.open(path))
    elif path.is_dir():
        raise UserError(
            f"{path} is not a run folder (no config.json) and no artefact (no {MANIFEST}); "
            "give the folder of a run, or one inside it"
        )
    else:
        raise UserError(
            f"{path} is no part of an artefact folder (no {MANIFEST} in its folder); "
            "give the folder of a run, or one inside it"
        )


def _bundle(folder: Path) -> Iterator[Finding]:
    """Every byte of a bundle, then the content of its parts."""
    try:
        open_run(folder)
    except UserError as error:
        yield Finding("bundle", str(error), True)
        return
    yield Finding("bundle", "whole, every checksum agrees; serve it with: genrec serve")
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        yield _artifact(manifest.parent, "export the bundle again: genrec export RUN")


def _run(run: Run) -> Iterator[Finding]:
    folders = sorted(manifest.parent for manifest in run.folder.glob(f"*/{MANIFEST}"))
    broken = {}
    for folder in folders:
        finding = _artifact(folder)
        broken[folder.name] = finding.broken
        yield finding
    for name, verb in STAGES.items():
        folder = run.folder / name
        if folder.is_dir() and name not in broken:
            broken[name] = True
            yield Finding(name, f"half-written (no {MANIFEST}); delete {folder} and run again: genrec run CONFIG", True)
        elif name not in broken:
            yield Finding(name, f"not made yet; make it with: genrec {verb} CONFIG")
    path = run.config.data.path
    if path and not Path(path).exists():
        yield Finding("data.path", f"{path} is gone; the prepared dataset can be used, but not made again")
    for name in (name for name, wrong in broken.items() if not wrong):
        if fault := run.stages.fault(name):
            yield Finding(name, f"stale: {fault}")
    for work in sorted(run.folder.glob(".*/step-*")):
        yield _checkpoint(work)
    for left in sorted((*run.folder.glob(".*.partial"), *run.folder.glob(".*.old"))):
        yield Finding(
            left.name,
            "left by a process that was stopped, or in use by one that runs; the next genrec run clears it up",
        )
    free = shutil.disk_usage(run.folder).free
    if free < LOW_DISK:
        yield Finding(
            "free disk", f"{free / 2**20:.0f} MiB on the disk of {run.folder}: free some before training", True
        )


def _checkpoint(folder: Path) -> Finding:
    name = f"{folder.parent.name}/{folder.name}"
    try:
        info = checkpoints.check(folder)
    except UserError as error:
        return Finding(name, f"broken ({str(error).split(';')[0]}); training goes on from the one before it")
    return Finding(name, f"whole, epoch {info['epoch']}; genrec train goes on from the newest")


def _artifact(folder: Path, remedy: str = "delete it and run again: genrec run CONFIG") -> Finding:
    """Checksums of every file, then what the content says about itself."""
    try:
        kind = read_json(folder / MANIFEST).get("kind")
        open_artifact(folder, kind, verify=True)
        for problem in CONTENT.get(kind, lambda _: ())(folder):
            return Finding(folder.name, f"{folder}: {problem}; {remedy}", True)
    except UserError as error:
        return Finding(folder.name, str(error), True)
    return Finding(folder.name, f"whole, every checksum agrees ({kind})")


def _dataset(folder: Path) -> Iterator[str]:
    data = Dataset(folder)
    offsets, n_events = np.asarray(data.offsets), len(data.items)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != n_events or (np.diff(offsets) < 0).any():
        yield f"offsets.npy does not divide the {n_events} events among users"
        return
    for name in ("timestamps", "actions", "queries", "split"):
        if len(getattr(data, name)) != n_events:
            yield f"{name}.npy has {len(getattr(data, name))} entries for {n_events} events"
            return
    limits = {
        "items": data.n_items,
        "queries": len(data.query_texts),
        "actions": len(data.actions_chain),
        "split": TEST + 1,
    }
    for name, limit in limits.items():
        values = getattr(data, name)
        low = -1 if name == "queries" else 0
        if n_events and not (low <= int(values.min()) and int(values.max()) < limit):
            yield f"{name}.npy holds numbers outside {low} to {limit - 1}"
    inside = np.ones(max(n_events - 1, 0), bool)
    starts = offsets[1:-1]
    inside[starts[(starts > 0) & (starts < n_events)] - 1] = False  # steps from one user to the next
    if (np.diff(data.timestamps)[inside] < 0).any():
        yield "timestamps.npy: a user's events are not in order of time"
    if (np.diff(np.asarray(data.split).astype(np.int8))[inside] < 0).any():
        yield "split.npy: a user's training events come after held-out ones"


def _semantic_ids(folder: Path) -> Iterator[str]:
    codes, text = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("codes", "text"))
    if codes.ndim != 2 or len(codes) != len(text):
        yield f"codes.npy {codes.shape} and text.npy {text.shape} are not of the same items"
    elif codes.min(initial=0) < 0:
        yield "codes.npy holds negative codes"
    if not np.isfinite(text).all():
        yield "text.npy holds numbers that are not finite"


def _weights(folder: Path) -> Iterator[str]:
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        yield f"model.safetensors cannot be read ({error})"
        return
    for name, value in tensors.items():
        if not value.isfinite().all():
            yield f"model.safetensors: {name} holds numbers that are not finite; lower training.learning_rate"


CONTENT: dict[str, Callable[[Path], Iterator[str]]] = {
    DATASET: _dataset, SEMANTIC_IDS: _semantic_ids, "model": _weights, checkpoints.BEST_KIND: _weights,
}  # fmt: skip
