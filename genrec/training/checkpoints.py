"""Checkpoints of a training, each an artefact folder: whole or not there, with checksums.

``step-000001200/`` is the whole state after 1200 optimiser steps; the newest two are kept. Its manifest names the
``best-*`` folder it relies on, which stays as long as it does. ``best-000001000/`` holds the weights that validation
liked best (for a fixed number of epochs: the last ones).
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import save_file

from genrec.artifacts.folders import atomic_folder, open_artifact
from genrec.config.schema import TrainingConfig
from genrec.errors import UserError
from genrec.training.distributed import gather, rank_and_world

log = logging.getLogger(__name__)
KIND, BEST_KIND = "checkpoint", "weights"
STATE, WEIGHTS = "state.ckpt", "model.safetensors"
KEPT = 2
LOOK_EVERY = 10  # steps between two looks at the clock where several processes must agree on it


class FolderIO(CheckpointIO):
    """Lightning's checkpoint ``FOLDER/state.ckpt`` as an artefact folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict | None = None
    ) -> None:
        """Write a checkpoint folder."""
        info = {
            "epoch": checkpoint["epoch"],
            "step": checkpoint["global_step"],
            "best": checkpoint["callbacks"]["Checkpoints"]["best"],
        }
        with atomic_folder(Path(path).parent, KIND, "", info) as folder:
            torch.save(checkpoint, folder / STATE)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint folder whose checksums hold."""
        open_artifact(Path(path).parent, KIND, verify=True)
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint folder."""
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def saved(work: Path) -> list[Path]:
    """The checkpoints of a training, newest first, whole or not."""
    return sorted(work.glob("step-*"), reverse=True)


def check(folder: Path) -> dict:
    """The manifest's info of a checkpoint that is whole, with the best weights it relies on; else ``UserError``."""
    info = open_artifact(folder, KIND, verify=True)["info"]
    if info["best"]:
        open_artifact(folder.parent / info["best"], BEST_KIND, verify=True)
    return info


def newest(work: Path) -> Path | None:
    """The state to go on from; a broken one is named in a warning, removed, and the one before it used."""
    for folder in saved(work):
        try:
            check(folder)
            return folder / STATE
        except UserError as error:
            log.warning("checkpoint %s is broken and is not used (%s)", folder.name, str(error).split(";")[0])
            shutil.rmtree(folder, ignore_errors=True)
    if work.is_dir():
        log.info("train: no usable checkpoint, starting from the beginning")
    return None


class Checkpoints(Checkpoint):
    """Saves by the clock and at the end of each epoch; keeps the best weights, and the curves.

    ``choosing``: the best by ``val/quality``; else the last epoch's weights. The curves (a row each ``log_every`` steps
    and one for each validation) are part of the state, so that a resumed training has those of an uninterrupted one.
    """

    def __init__(self, work: Path, settings: TrainingConfig, choosing: bool, log_every: int):
        self.work, self.settings, self.choosing, self.log_every = work, settings, choosing, log_every
        self.best: str | None = None
        self.quality = -float("inf")
        self.rows: list[dict] = []
        self.losses: dict[str, float] = {}  # of the step under way, summed over its parts
        self.clock = time.monotonic()

    @property
    def state_key(self) -> str:
        """The name of this callback in a checkpoint."""
        return "Checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        return {"best": self.best, "quality": self.quality, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.quality, self.rows = state["best"], state["quality"], list(state["rows"])

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop at once where the stop was decided in the epoch before a kill."""
        for stopper in trainer.early_stopping_callbacks:
            if isinstance(stopper, EarlyStopping) and stopper.wait_count >= stopper.patience:
                trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Add a row to the curves and save where it is due."""
        parts = trainer.accumulate_grad_batches
        whole = (index + 1) % parts == 0
        step = trainer.global_step if whole else trainer.global_step + 1
        if step % self.log_every == 0:
            for name, value in trainer.callback_metrics.items():
                if name.startswith("train/"):
                    self.losses[name] = self.losses.get(name, 0.0) + float(value) / parts
        if not whole:
            return
        if self.losses:
            self._row(trainer, self.losses)
            self.losses = {}
        last = index + 1 >= trainer.num_training_batches
        if not last and self._due(step):  # the epoch's end saves anyway, with its validation
            self.save(trainer)

    def _due(self, step: int) -> bool:
        if not self.settings.checkpoint_minutes:
            return False
        _, world = rank_and_world()
        late = time.monotonic() - self.clock >= 60 * self.settings.checkpoint_minutes
        if world == 1:
            return late
        return step % LOOK_EVERY == 0 and gather(late)[0]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Add a row to the curves and keep the weights if they are the best."""
        self._row(
            trainer, {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        )
        quality = float(trainer.callback_metrics["val/quality"])
        quality = -1.0 if math.isnan(quality) else quality
        if quality > self.quality:
            self.quality = quality
            self.keep(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save, and keep the last epoch's weights where validation does not choose."""
        if not self.choosing and trainer.current_epoch + 1 >= (trainer.max_epochs or 0):
            self.keep(trainer)
        self.save(trainer)

    def _row(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **values})

    def keep(self, trainer: L.Trainer) -> None:
        """Write the network's weights as the best so far."""
        self.best = f"best-{trainer.global_step:09d}"
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            weights = {name.removeprefix("network."): value.cpu().contiguous() for name, value in state.items()}
            with atomic_folder(self.work / self.best, BEST_KIND, "", {"epoch": trainer.current_epoch}) as folder:
                save_file(weights, folder / WEIGHTS)

    def save(self, trainer: L.Trainer) -> None:
        """Write the whole state.

        Then remove all but the newest two states, and best weights that neither relies on.
        """
        self.clock = time.monotonic()
        trainer.save_checkpoint(self.work / f"step-{trainer.global_step:09d}" / STATE, weights_only=False)
        if trainer.is_global_zero:
            self._prune()

    def _prune(self) -> None:
        folders = saved(self.work)
        for folder in folders[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
        needed = {self.best}
        for folder in folders[:KEPT]:
            with suppress(UserError):
                needed.add(open_artifact(folder, KIND)["info"]["best"])
        for folder in self.work.glob("best-*"):
            if folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)
