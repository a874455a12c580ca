"""Several processes as one: who goes first, and what everybody must know. With one process all of it costs nothing."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(days=1)  # the others wait while the first prepares the data


def launched() -> int:
    """How many processes ``torchrun`` has started (1 without it)."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def on_gpu(accelerator: str) -> bool:
    """Whether a run with ``training.accelerator`` computes on a GPU here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def compute_device(accelerator: str) -> torch.device:
    """Where a run with ``training.accelerator`` computes outside a fit: answers, evaluation, the preference stage."""
    return torch.device("cuda" if on_gpu(accelerator) else "cpu")


def join() -> None:
    """Join the group of processes that ``torchrun`` has started, once."""
    if launched() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    atexit.register(distributed.destroy_process_group)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def barrier() -> None:
    """Wait for everybody."""
    if distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1))


@contextmanager
def leader_first() -> Iterator[None]:
    """The first process goes through the body alone; the others follow when it is through, and find everything done."""
    join()
    rank, _ = rank_and_world()
    if rank:
        barrier()
    yield
    if not rank:
        barrier()


def gather(value: Any) -> list[Any]:
    """Everybody's value, in the order of ranks. Small values only."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    gathered = [None] * world
    distributed.all_gather_object(gathered, value)
    return gathered


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks behind each other; each rank may have another number. No gradient flows through it."""
    _, world = rank_and_world()
    if world == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
