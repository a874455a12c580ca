"""Fit codebooks on a sample and encode a file of vectors: genrec against faiss and scikit-learn at equal code size.

    python scripts/bench/quantizers.py --n 100000 --dim 256 --sizes 4096-1024-512 --opq 2x256 --threads 1

Every contender runs in a process of its own, fits on the same sample, encodes all vectors block by block, and has its
reconstruction
error measured over all of them. `genrec rq-kmeans` is the same algorithm as `faiss.Kmeans`, level by level, so that
time and error compare
like with like; `genrec rq-opq` is the default quantizer (normalised residuals, balanced level, OPQ). The rivals code
the OPQ part as
further residual levels of the same size. CPU seconds count all threads, so on a busy machine their ratios are the ones
to trust.
The vectors are made up (--vectors FILE.npy takes real ones) and lie in a temporary file that is read as a memory map.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BLOCK = 1 << 16
CONTENDERS = ("genrec rq-kmeans", "genrec rq-opq", "faiss.Kmeans", "faiss.ResidualQuantizer", "MiniBatchKMeans")
Encoder = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # a block to its codes and its reconstruction


def write_vectors(path: Path, n: int, dim: int, seed: int = 0) -> None:
    """Unit vectors with the shape of text vectors: Zipf-sized topics, a low-dimensional spread within each, a little
    noise."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(2000, dim)).astype(np.float32)
    share = 1 / np.arange(1, 2001)
    spread = rng.normal(size=(48, dim)).astype(np.float32) / 6
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        block = topics[rng.choice(2000, m, p=share / share.sum())] * 0.7
        block += rng.standard_normal((m, 48), np.float32) @ spread * 1.5
        block += 0.3 * rng.standard_normal((m, dim), np.float32)
        out[start : start + m] = block / np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()


def fit_genrec(
    sample: np.ndarray, vectors: np.ndarray, job: argparse.Namespace, kind: str
) -> tuple[float, np.ndarray, Callable]:
    """Fit and encode; returns the seconds of the fit, the codes, and what decodes them."""
    from genrec.semantic_ids.quantizers import encode, encode_balanced, fit_codebooks, reconstruct

    is_opq = kind == "rq-opq"
    levels, n_sub = (job.levels, job.opq[0]) if is_opq else (job.levels + [job.opq[1]] * job.opq[0], 0)
    start = time.process_time()
    codebooks, _ = fit_codebooks(
        sample, levels, n_sub, job.opq[1], job.seed, job.iterations, is_opq, normalise=is_opq, sample=len(sample)
    )
    fitted = time.process_time() - start
    codes = (encode_balanced if is_opq else encode)(codebooks, vectors)
    return fitted, codes, lambda part: reconstruct(codebooks, part)


def fit_levels(sample: np.ndarray, job: argparse.Namespace, fit: Callable) -> Encoder:
    """Greedy residual levels of any k-means: `fit(points, k, seed)` returns (centroids, assign)."""
    levels, residual = [], sample
    for level, k in enumerate(job.levels + [job.opq[1]] * job.opq[0]):
        centroids, assign = fit(residual, k, job.seed + level)
        residual = residual - centroids[assign(residual)]
        levels.append((centroids, assign))

    def encode(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left, codes = block, []
        for centroids, assign in levels:
            codes.append(assign(left))
            left = left - centroids[codes[-1]]
        return np.column_stack(codes), block - left

    return encode


def faiss_kmeans(job: argparse.Namespace) -> Callable:
    import faiss

    def fit(points: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, Callable]:
        model = faiss.Kmeans(points.shape[1], k, niter=job.iterations, seed=seed)
        model.train(np.ascontiguousarray(points))
        return model.centroids.reshape(k, -1), lambda block: model.index.search(np.ascontiguousarray(block), 1)[1][:, 0]

    return fit


def minibatch(job: argparse.Namespace) -> Callable:
    from sklearn.cluster import MiniBatchKMeans

    def fit(points: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, Callable]:
        model = MiniBatchKMeans(
            k, batch_size=4096, n_init=1, init="random", max_iter=job.iterations, random_state=seed
        ).fit(points)
        return model.cluster_centers_.astype(np.float32), model.predict

    return fit


def faiss_residual(sample: np.ndarray, job: argparse.Namespace) -> Encoder:
    import faiss

    bits = faiss.UInt64Vector()
    for k in job.levels + [job.opq[1]] * job.opq[0]:
        bits.push_back(k.bit_length() - 1)
    model = faiss.ResidualQuantizer(sample.shape[1], bits)
    model.max_beam_size = 1  # greedy, as all others here
    model.cp.niter = job.iterations
    model.train(sample)

    def encode(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        packed = model.compute_codes(np.ascontiguousarray(block))
        return packed, model.decode(packed)

    return encode


class PeakMemory(threading.Thread):
    """The most memory this process itself held (GiB), without the mapped pages of files, looked at twenty times a
    second. Linux only."""

    def __init__(self):
        super().__init__(daemon=True)
        self.gib, self.over = 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.05):
            held = next(
                line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
            )
            self.gib = max(self.gib, int(held.split()[1]) / 2**20)


def contend(name: str, job: argparse.Namespace) -> dict:
    """Run one contender in this process."""
    import faiss
    import torch

    torch.set_num_threads(job.threads)
    faiss.omp_set_num_threads(job.threads)
    vectors = np.load(job.vectors, mmap_mode="r")
    size = min(len(vectors), job.fit_sample)
    rows = np.sort(np.random.default_rng(job.seed).choice(len(vectors), size, replace=False))
    sample = np.ascontiguousarray(vectors[rows], np.float32)
    total = float(sum((vectors[i : i + BLOCK].astype(np.float64) ** 2).sum() for i in range(0, len(vectors), BLOCK)))
    wall, cpu, lost, peak = time.perf_counter(), time.process_time(), 0.0, PeakMemory()
    if name.startswith("genrec"):
        fitted, codes, decode = fit_genrec(sample, vectors, job, name.split()[1])
        cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
        for start in range(0, len(vectors), BLOCK):
            part = slice(start, start + BLOCK)
            lost += float(((vectors[part] - decode(codes[part])) ** 2).sum(dtype=np.float64))
    else:
        if name == "faiss.ResidualQuantizer":
            encode = faiss_residual(sample, job)
        else:
            encode = fit_levels(sample, job, faiss_kmeans(job) if name == "faiss.Kmeans" else minibatch(job))
        fitted = time.process_time() - cpu
        for start in range(0, len(vectors), BLOCK):
            block = np.ascontiguousarray(vectors[start : start + BLOCK], np.float32)
            lost += float(((block - encode(block)[1]) ** 2).sum(dtype=np.float64))
        cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    peak.over.set()
    return {
        "name": name, "fit_cpu_s": fitted, "all_cpu_s": cpu_seconds, "wall_s": wall_seconds, "error": lost / total,
        "peak_gib": peak.gib,
    }  # fmt: skip


def show(rows: list[dict]) -> None:
    base = next((row for row in rows if row["name"] == "faiss.Kmeans"), rows[0])
    print(
        f"\nratios to {base['name']}: time above 1 is faster, error below 1 is better; memory without mapped pages of the file"
    )
    print(
        f"{'':26}{'fit CPU s':>10}{'all CPU s':>10}{'wall s':>9}{'error':>8}{'x faster':>10}{'error ratio':>12}{'peak GiB':>10}"
    )
    for row in rows:
        print(
            f"{row['name']:26}{row['fit_cpu_s']:10.1f}{row['all_cpu_s']:10.1f}{row['wall_s']:9.1f}{row['error']:8.4f}"
            f"{base['all_cpu_s'] / row['all_cpu_s']:10.2f}{row['error'] / base['error']:12.4f}{row['peak_gib']:10.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--sizes", default="4096-1024-512", help="residual levels")
    parser.add_argument("--opq", default="2x256", help="OPQ sub-codebooks x size")
    parser.add_argument("--fit-sample", type=int, default=1_000_000, help="vectors the codebooks are fitted on")
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--vectors", help="a float32 .npy file instead of made-up vectors")
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=list(CONTENDERS),
        choices=CONTENDERS,
        metavar="NAME",
        help="of: " + ", ".join(CONTENDERS),
    )
    parser.add_argument("--output", type=Path, help="also write the rows here, as JSON")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    job = parser.parse_args()
    job.levels = [int(size) for size in job.sizes.split("-")]
    job.opq = [int(part) for part in job.opq.split("x")]
    if job.only:
        print(json.dumps(contend(job.only, job)))
        return
    os.environ |= {
        "OMP_NUM_THREADS": str(job.threads),
        "OPENBLAS_NUM_THREADS": str(job.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with tempfile.TemporaryDirectory() as folder:
        if not job.vectors:
            job.vectors = str(Path(folder) / "vectors.npy")
            write_vectors(Path(job.vectors), job.n, job.dim)
        rows = []
        for name in job.contenders:
            command = [
                sys.executable,
                __file__,
                "--only",
                name,
                "--vectors",
                job.vectors,
                "--sizes",
                job.sizes,
                "--opq",
                f"{job.opq[0]}x{job.opq[1]}",
            ]
            for key in ("fit_sample", "iterations", "threads", "seed"):
                command += [f"--{key.replace('_', '-')}", str(getattr(job, key))]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed, exit status {done.returncode} (negative: the signal that ended it)")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            if job.output:
                job.output.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
