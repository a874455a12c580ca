"""Several processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path


def in_processes(command: Sequence[str], world: int, folder: Path) -> None:
    """Run ``command`` in ``world`` processes that know of each other; logs lie in ``folder`` until all went well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": 0,
        "GROUP_RANK": 0,
        "OMP_NUM_THREADS": 1,
    }
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            own = {name: str(value) for name, value in (base | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            with log.open("w") as stream:
                ranks.append(subprocess.Popen(command, env=os.environ | own, stdout=stream, stderr=subprocess.STDOUT))
        for process, log in zip(ranks, logs, strict=True):
            assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
    for log in logs:
        log.unlink()
