"""Time and memory of ``genrec prepare`` on simulated logs of growing size, and beside a plain pandas pipeline.

    python scripts/bench/prepare.py --sizes 1000000 10000000 100000000 --pandas 10000000

The log is made once per size: one Parquet file a day, each in order of time, as a shop's log would lie. Every
measurement is a process of
its own with two threads, so its peak memory is its own. Two tables are printed: ours by size, and ours against pandas
(``pip install pandas pyarrow``) doing the same on the same files: read, sort, drop duplicates, 5-core, dense ids,
leave-last-out split,
sequences, save. Ours also keeps queries and writes checksums, the leakage report and the manifest. CPU time is user +
system: it hardly
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

DAY = 86_400
CORE = 5
CHUNKS_A_FLUSH = 24  # blocks of simulated users held before they are dealt into days


def make_log(events: int, folder: Path) -> Path:
    """A simulated log of about ``events`` events, one file a day; made once."""
    from genrec.data.simulator.sessions import EPOCH
    from genrec.data.simulator.simulate import SimulatorConfig, simulate_chunks

    target = folder / f"log-{events}"
    if target.is_dir():
        return target
    work = folder / f"log-{events}.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    items = max(1_000, int(20_000 * (events / 1e6) ** 0.5))
    config = SimulatorConfig(
        n_users=max(100, events // 40), n_items=items, n_events=events, n_categories=60, n_brands=200, seed=1
    )
    held, made, flushes = [], 0, 0

    def flush() -> None:
        table = pl.concat(held).with_columns(((pl.col("timestamp") - EPOCH) // DAY).alias("day"))
        for (day,), part in table.partition_by("day", as_dict=True, include_key=False).items():
            place = work / f"day-{day:03d}"
            place.mkdir(exist_ok=True)
            part.write_parquet(place / f"{flushes:05d}.parquet", compression="lz4")

    for chunk in simulate_chunks(config):
        held.append(chunk.events)
        made += chunk.events.height
        if len(held) == CHUNKS_A_FLUSH:
            flush()
            held, flushes = [], flushes + 1
            print(f"  simulated {made:,} of {events:,} events", file=sys.stderr, flush=True)
    if held:
        flush()
    for place in sorted(work.glob("day-*")):
        pl.read_parquet(place / "*.parquet").sort("timestamp").write_parquet(work / f"{place.name}.parquet")
        shutil.rmtree(place)
    work.rename(target)
    return target


def ours(path: Path, target: Path) -> int:
    """Prepare with genrec; returns the events kept."""
    import logging

    from genrec.config.load import load_config
    from genrec.data.prepare.pipeline import prepare

    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stderr)
    core = [f"data.min_user_events={CORE}", f"data.min_item_events={CORE}"]
    config = load_config(None, ["data.reader=table", f"data.path={path}", *core])
    prepare(config, target)
    return json.loads((target / "manifest.json").read_text())["info"]["events"]


def plain_pandas(path: Path, target: Path) -> int:
    """The same with pandas, as one would write it down."""
    import pandas as pd

    columns = ["user_id", "item_id", "timestamp", "action"]
    log = pd.concat(
        [pd.read_parquet(file, columns=columns) for file in sorted(path.glob("*.parquet"))], ignore_index=True
    )
    log = log.sort_values(["user_id", "timestamp"], kind="stable").drop_duplicates(
        ["user_id", "item_id", "timestamp", "action"]
    )
    while True:
        users, items = (
            log.groupby("user_id")["item_id"].transform("size"),
            log.groupby("item_id")["user_id"].transform("size"),
        )
        keep = (users >= CORE) & (items >= CORE)
        if keep.all():
            break
        log = log[keep]
    log["user"], user_ids = pd.factorize(log["user_id"])
    log["item"], item_ids = pd.factorize(log["item_id"])
    from_end = log.groupby("user").cumcount(ascending=False)
    log["split"] = np.select([from_end == 0, from_end == 1], [2, 1], 0).astype(np.uint8)
    sequences = log.groupby("user").agg(items=("item", list), times=("timestamp", list), split=("split", list))
    target.mkdir(parents=True)
    sequences.to_parquet(target / "sequences.parquet")
    pd.Series(user_ids).to_frame("user_id").to_parquet(target / "users.parquet")
    pd.Series(item_ids).to_frame("item_id").to_parquet(target / "items.parquet")
    return len(log)


WORKERS = {"ours": ours, "pandas": plain_pandas}


def work(name: str, path: Path, target: Path) -> None:
    """In a process of its own: run and print what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    kept = WORKERS[name](path, target)
    took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "kept": kept}
    print(json.dumps({**took, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory this process ever had. Linux's ``ru_maxrss`` also knows the parent's size at the fork, so it is
    the second choice."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, path: Path, folder: Path) -> dict:
    """One measurement: seconds, CPU seconds, events kept, peak bytes, and the largest disk use seen beside the log."""
    target = folder / f"out-{name}"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, __file__, "--worker", name, "--path", str(path), "--target", str(target / "dataset")]
    target.mkdir(parents=True)
    limited = {**os.environ, "POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "2"}
    disk = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=limited) as process:
        while process.poll() is None:
            disk = max(disk, used(target))
            time.sleep(0.5)
        lines = process.stdout.read().splitlines()
    if process.returncode:
        sys.exit(f"{name} on {path.name} failed with exit code {process.returncode}")
    shutil.rmtree(target, ignore_errors=True)
    return {**json.loads(lines[-1]), "disk": disk}


def used(folder: Path) -> int:
    """Bytes below a folder; files that go away meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def by_size(sizes: list[int], folder: Path) -> None:
    """The first table."""
    print(
        "| events | kept | seconds | µs per event | CPU µs per event | wall growth | CPU growth | peak GiB | scratch disk GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    last = None
    for size in sizes:
        path = make_log(size, folder)
        rows = rows_of(path)
        found = measure("ours", path, folder)
        wall, cpu = found["seconds"] / rows * 1e6, found["cpu"] / rows * 1e6
        growth = ["", ""]
        if last:  # per tenfold of events
            power = 1 / np.log10(rows / last[0])
            growth = [f"{(now / then) ** power:.2f}x" for now, then in ((wall, last[1]), (cpu, last[2]))]
        print(
            f"| {rows:,} | {found['kept']:,} | {found['seconds']:.1f} | {wall:.2f} | {cpu:.2f} | {growth[0]} | {growth[1]} "
            f"| {found['peak'] / 2**30:.2f} | {found['disk'] / 2**30:.2f} |", flush=True,
        )  # fmt: skip
        last = rows, wall, cpu


def against_pandas(size: int, folder: Path, repeats: int) -> None:
    """The second table: the best of alternating runs, so that both meet the same machine."""
    path = make_log(size, folder)
    runs = [{name: measure(name, path, folder) for name in WORKERS} for _ in range(repeats)]
    best = {name: min((run[name] for run in runs), key=lambda found: found["seconds"]) for name in WORKERS}
    print(
        f"\n{rows_of(path):,} events\n\n| pipeline | kept | seconds | CPU seconds | peak GiB |\n|---|---|---|---|---|"
    )
    for name, found in best.items():
        print(
            f"| {name} | {found['kept']:,} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['peak'] / 2**30:.2f} |"
        )
    ratio = {key: best["pandas"][key] / best["ours"][key] for key in ("seconds", "cpu", "peak")}
    print(f"| pandas / ours | | {ratio['seconds']:.1f}x | {ratio['cpu']:.1f}x | {ratio['peak']:.1f}x |")


def rows_of(path: Path) -> int:
    """Rows of a log, from the files' footers."""
    return sum(pl.scan_parquet(file).select(pl.len()).collect().item() for file in sorted(path.glob("*.parquet")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--pandas", type=int, default=0, help="also compare with pandas on so many events")
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs of each pipeline in that comparison; the best counts"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-prepare")
    parser.add_argument("--worker", choices=list(WORKERS))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--target", type=Path)
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker, chosen.path, chosen.target)
        return
    if chosen.sizes:
        by_size(chosen.sizes, chosen.folder)
    if chosen.pandas:
        against_pandas(chosen.pandas, chosen.folder, chosen.repeats)


if __name__ == "__main__":
    main()
