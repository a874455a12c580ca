"""What ``genrec doctor`` reports: the machine, and whether a run folder is whole."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from genrec import __version__
from genrec.artifacts import MANIFEST, open_artifact, read_json
from genrec.serving.bundle import is_bundle, open_run


def machine() -> Iterator[tuple[str, str]]:
    """Names and values: versions, devices, free disk and memory."""
    yield "genrec", __version__
    yield "python", platform.python_version()
    for package in ("torch", "lightning", "transformers", "polars", "numpy", "faiss-cpu"):
        yield package, version(package)
    yield "device", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    yield "cores", str(os.cpu_count())
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    yield "free disk", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"


def check_run(folder: Path) -> Iterator[str]:
    """A line per stage; raises ``UserError`` at the first broken one."""
    run = open_run(folder)
    if is_bundle(folder):
        yield "bundle: whole, every checksum agrees"
    for manifest in sorted(run.folder.glob(f"*/{MANIFEST}")):
        open_artifact(manifest.parent, read_json(manifest).get("kind"), verify=True)
        yield f"{manifest.parent.name}: whole, every checksum agrees"
