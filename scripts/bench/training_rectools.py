"""CPU seconds of a training epoch of our backbone and of RecTools' SASRec, on the same events and at the same width.

    pip install rectools                    # with a NumPy and a pandas that it knows; its results are not read here
    genrec run configs/amazon-beauty.yaml data.path=... model.dim=64 \\
        "training.tasks=[recommendation]" "queries.synthetic=[]"
    python scripts/bench/training_rectools.py runs/amazon-beauty

Both learn from the training events alone, by the softmax over all items, with two layers, two heads and dropout .5, on
windows of ``--length`` events. Ours is what a run trains: item vectors of ids, codes and text, 64 sequences a step.
RecTools' model has ids alone, 128 sequences a step, its default. Epochs in turns, the first of each left out: it pays
for allocations. One thread; validation is not in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch


class EpochClock:
    """Adds a callback of either Lightning to a list of CPU seconds, one of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def callback(self, base: type) -> Any:
        """An instance of ``base``, a Lightning ``Callback``, that measures."""
        clock = self

        class Clock(base):  # type: ignore[misc, valid-type]
            """From the start of an epoch to the end of its last batch."""

            def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
                clock.seconds.append(0.0)
                self.begin = time.process_time()

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                clock.seconds[-1] = time.process_time() - self.begin

        return Clock()


def ours(run: Any, epochs: int, folder: Path) -> list[float]:
    """CPU seconds of the epochs of our backbone."""
    import lightning as L

    from genrec.runs.stages import model_fits
    from genrec.training import fit as fitting

    clock, make_trainer = EpochClock(), fitting.make_trainer

    def timed(*arguments: Any) -> L.Trainer:
        trainer = make_trainer(*arguments)
        trainer.callbacks.append(clock.callback(L.Callback))
        return trainer

    fitting.make_trainer = timed
    try:
        one = model_fits(run.config)[0]
        plan = replace(one.resolved(run.folder), epochs=epochs)
        fitting.fit(one.config, run.dataset, run.ids, folder / "model", plan, lambda: run.lexical)
    finally:
        fitting.make_trainer = make_trainer
    return clock.seconds


def theirs(run: Any, epochs: int, length: int, dim: int) -> list[float]:
    """CPU seconds of the epochs of RecTools' SASRec."""
    import pandas as pd
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    from genrec.data.dataset import TRAIN

    data, clock = run.dataset, EpochClock()
    kept = np.asarray(data.split) == TRAIN
    users = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    index = np.arange(len(users)) - np.asarray(data.offsets)[users]  # the order of the file, as ours
    table = pd.DataFrame({
        Columns.User: users[kept],
        Columns.Item: np.asarray(data.items)[kept],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2014-01-01") + pd.to_timedelta(index[kept], unit="s"),
    })  # fmt: skip
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=dim,
        dropout_rate=0.5,
        session_max_len=length,
        loss="softmax",
        epochs=epochs,
        batch_size=128,
        get_trainer_func=lambda **_: Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock.callback(Callback)],
        ),
    )
    model.fit(Dataset.construct(table))
    return clock.seconds


def main() -> None:
    """Run both in turns and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a tokenized run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("runs/.training-rectools"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    from genrec.runs.run import Run

    run = Run.open(options.run)
    model = run.config.model
    seconds: dict[str, list[float]] = {"genrec, backbone": [], "RecTools, SASRec": []}
    for number in range(options.rounds):
        seconds["genrec, backbone"] += ours(run, options.epochs, options.scratch / str(number))[1:]
        seconds["RecTools, SASRec"] += theirs(run, options.epochs, model.max_length, model.dim)[1:]
    base = float(np.median(seconds["RecTools, SASRec"]))
    print("| | CPU seconds an epoch, median | least | / RecTools |\n|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {np.median(values):.1f} | {min(values):.1f} | {np.median(values) / base:.2f} |")


if __name__ == "__main__":
    main()
