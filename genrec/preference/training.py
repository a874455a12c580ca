"""The training of the preference stage: each phase is a Lightning fit of the decoder alone.

The randomness of a step follows from its phase and number alone: a stopped stage resumes and ends with the same
decoder.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from genrec.artifacts.checkpoint import Arrays, StageCheckpoint
from genrec.config.schema import TrainingConfig
from genrec.errors import UserError
from genrec.preference.phases import TASTE, PhaseTrainer
from genrec.training import checkpoints
from genrec.training.batches import EpochBatches, EpochLoader, step_seed
from genrec.training.checkpoints import Checkpoints
from genrec.training.distributed import barrier, gather, rank_and_world
from genrec.training.trainer import fit_or_interrupt, trainer_options

log = logging.getLogger(__name__)
BATCH_SIZE = 64  # requests of a step
_WARMUP_STEPS = 20
_CURVES = "curves"  # beside the decoder's tensors in the part of a finished phase


def learn(learner: PhaseTrainer, work: Path, key: str, seed: int, settings: TrainingConfig) -> list[dict]:
    """Run the phases and return the curves, a row each tenth of a phase.

    ``settings``: devices, precision and checkpoints, as of any training. Resumes from ``work`` where a stage with the
    same ``key`` was stopped. Raises ``UserError`` where the loss stops being finite.
    """
    finished, curves = StageCheckpoint(work / "phases", key), []
    for number, phase in enumerate(learner.settings.phases):
        if phase == TASTE:
            continue
        phase_name = f"{number + 1}-{phase}"
        arrays = finished.read(phase_name)
        barrier()  # everybody has looked before somebody writes
        if arrays is None:
            arrays = _fit_phase(learner, number, work / phase_name, seed, settings)
            if not rank_and_world()[0]:
                finished.write(phase_name, arrays)
            barrier()
        rows = json.loads(str(arrays.pop(_CURVES)))
        curves += rows
        _set_decoder(learner, {name: torch.from_numpy(array) for name, array in arrays.items()})
    return curves


def _set_decoder(learner: PhaseTrainer, weights: dict[str, Tensor]) -> None:
    policy = learner.policy
    policy.decoder.to(policy.items.device).load_state_dict(weights)  # Lightning leaves it on the host
    policy.version += 1


def _fit_phase(learner: PhaseTrainer, number: int, work: Path, seed: int, settings: TrainingConfig) -> Arrays:
    """The decoder after a phase, and its curves."""
    phase = learner.settings.phases[number]
    rows = learner.prepare(phase)
    module = Phase(learner, number, rows, seed)
    if len(rows):
        log.info("prefer: %s: %d requests, %d steps", phase, len(rows), module.total)
        keeper = Checkpoints(work, settings, choosing=False, log_every=1 << 62)
        options = trainer_options(replace(settings, strategy="ddp"), decoder_only=False)  # too small to be sharded
        trainer = L.Trainer(**options, max_epochs=learner.settings.epochs, callbacks=[keeper], logger=False)
        fit_or_interrupt(trainer, module, checkpoints.newest(work))
    else:
        log.info("prefer: %s: no request teaches anything, skipped", phase)
    weights = {name: value.detach().cpu().numpy() for name, value in learner.policy.decoder.state_dict().items()}
    return weights | {_CURVES: np.array(json.dumps(module.curves))}


class PhaseBatches(EpochBatches):
    """The steps of an epoch of a phase: this process's requests of each, as rising indices."""

    def __init__(self, rows: np.ndarray, number: int, epoch: int, seed: int):
        """``rows`` (n,): the requests that phase ``number`` learns from."""
        order, (rank, world) = np.random.default_rng([seed, number, epoch]).permutation(rows), rank_and_world()
        parts = np.array_split(order, steps_of(len(rows)))
        self.epoch, self.parts = epoch, [np.sort(part[rank::world] if len(part) > rank else part[:1]) for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.parts[index]


def steps_of(requests: int) -> int:
    """Steps of an epoch of so many requests."""
    return -(-requests // BATCH_SIZE)


class Phase(L.LightningModule):
    """One phase: of the policy the decoder alone learns, without dropout; everything around it is frozen."""

    def __init__(self, learner: PhaseTrainer, number: int, rows: np.ndarray, seed: int):
        """``rows`` (n,): the requests that phase ``number`` learns from."""
        super().__init__()
        self.decoder, self.learner = learner.policy.decoder, learner
        self.number, self.rows, self.seed = number, rows, seed
        self.total = steps_of(len(rows)) * learner.settings.epochs
        self.sums: dict[str, float] = {}
        self.curves: list[dict] = []
        self.train(False)

    @property
    def phase(self) -> str:
        """The phase's name."""
        return self.learner.settings.phases[self.number]

    def train(self, mode: bool = True) -> Phase:
        """Stay in evaluation mode: the policy is what answers requests."""
        return super().train(False)

    def train_dataloader(self) -> EpochLoader:
        """The steps of the trainer's epoch."""
        return EpochLoader(PhaseBatches(self.rows, self.number, self.trainer.current_epoch, self.seed))

    def on_train_start(self) -> None:
        """Vectors of the decoder before its weights were read from a checkpoint are of no use."""
        self.learner.policy.version += 1

    def training_step(self, rows: np.ndarray, index: int) -> Tensor:
        """The loss of a batch of requests."""
        step = self.current_epoch * steps_of(len(self.rows)) + index
        generator = torch.Generator().manual_seed(step_seed(self.seed, self.number, step, self.global_rank))
        loss, logged = self.learner.step(self.phase, rows, generator)
        if not torch.isfinite(loss):
            raise UserError(
                f"preference: the loss of {self.phase} is not finite at step {step}; lower preference.learning_rate"
            )
        for name, value in (("loss", float(loss.detach())), *logged.items(), ("steps", 1.0)):
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % max(1, self.total // 10) == 0 or step + 1 == self.total:
            self._add_row(step + 1)
        return loss

    def _add_row(self, step: int) -> None:
        """The means since the last row, over all processes."""
        everyones = gather(self.sums)
        sums = {name: sum(one.get(name, 0.0) for one in everyones) for name in self.sums}
        means = {name: value / sums["steps"] for name, value in sums.items() if name != "steps"}
        self.curves.append({"phase": self.phase, "step": step, **means})
        line = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        log.info("prefer: %s %d/%d %s", self.phase, step, self.total, line)
        self.sums = {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The decoder has changed."""
        self.learner.policy.version += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Curves, and the sums of the next row."""
        checkpoint["phase"] = {"sums": self.sums, _CURVES: self.curves}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self.sums, self.curves = checkpoint["phase"]["sums"], checkpoint["phase"][_CURVES]

    def configure_optimizers(self) -> Any:
        """AdamW without decay; the learning rate warms up, then falls along half a cosine to a tenth."""
        optimizer = torch.optim.AdamW(
            self.decoder.parameters(), lr=self.learner.settings.learning_rate, weight_decay=0.0
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch is indices of the host's tables."""
        return batch


def _rate(total: int) -> Callable[[int], float]:
    """The factor of the learning rate by step: warm-up, then half a cosine to a tenth."""

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / min(_WARMUP_STEPS, total))
        return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1))))

    return rate
