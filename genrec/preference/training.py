"""The training loop of the preference stage.

The randomness of a step follows from its phase and number alone: a stopped stage resumes and ends with the same
decoder.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genrec.artifacts.folders import atomic_folder, open_artifact
from genrec.errors import UserError
from genrec.preference.phases import PhaseTrainer
from genrec.training.batches import step_seed

log = logging.getLogger(__name__)
KIND, STATE = "preference checkpoint", "state.pt"
CHECKPOINT_STEPS = 100  # about a minute on two CPU cores
BATCH_SIZE = 64  # requests of a step
_WARMUP_STEPS = 20


@dataclass
class _Progress:
    """Where the stage is: ``phase`` and ``step`` come next; ``begun`` is the decoder when the phase began."""

    phase: int
    step: int
    begun: dict[str, Tensor]
    decoder: dict[str, Tensor]
    optimizer: dict
    sums: dict[str, float]
    curves: list[dict]


def learn(trainer: PhaseTrainer, work: Path, key: str, seed: int) -> list[dict]:
    """Run the phases and return the curves, a row each tenth of a phase.

    Resumes from ``work`` where a stage with the same key was stopped. Raises ``UserError`` where the loss stops being
    finite.
    """
    progress = _resume(work, key)
    curves: list[dict] = progress.curves if progress else []
    for number, phase in enumerate(trainer.settings.phases):
        if progress and number < progress.phase:
            continue
        resumed = progress if progress and number == progress.phase else None
        if resumed:
            trainer.policy.decoder.load_state_dict(resumed.begun)
            trainer.policy.version += 1
        rows = trainer.prepare(phase)
        if len(rows):
            _learn_phase(trainer, phase, number, rows, resumed, curves, work, key, seed)
        else:
            log.info("prefer: %s: no request teaches anything, skipped", phase)
    return curves


def _learn_phase(
    trainer: PhaseTrainer,
    phase: str,
    number: int,
    rows: np.ndarray,
    resumed: _Progress | None,
    curves: list[dict],
    work: Path,
    key: str,
    seed: int,
) -> None:
    """The steps of phase ``number`` on requests ``rows`` (n,); rows are added to ``curves``."""
    settings, policy = trainer.settings, trainer.policy
    begun = {name: value.clone() for name, value in policy.decoder.state_dict().items()}
    per_epoch = -(-len(rows) // BATCH_SIZE)
    total = per_epoch * settings.epochs
    optimizer = torch.optim.AdamW(policy.decoder.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    first, sums = 0, {}
    if resumed:
        policy.decoder.load_state_dict(resumed.decoder)
        policy.version += 1
        optimizer.load_state_dict(resumed.optimizer)
        first, sums = resumed.step, resumed.sums
    log.info("prefer: %s: %d requests, %d steps", phase, len(rows), total)
    for step in range(first, total):
        epoch, batch_number = divmod(step, per_epoch)
        order = np.random.default_rng([seed, number, epoch]).permutation(rows)
        batch = np.sort(np.array_split(order, per_epoch)[batch_number])
        generator = torch.Generator().manual_seed(step_seed(seed, number, step, 0))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, total)
        optimizer.zero_grad()
        loss, logged = trainer.step(phase, batch, generator)
        if not torch.isfinite(loss):
            raise UserError(
                f"preference: the loss of {phase} is not finite at step {step}; lower preference.learning_rate"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.decoder.parameters(), 1.0)
        optimizer.step()
        policy.version += 1
        for name, value in (("loss", float(loss.detach())), *logged.items(), ("steps", 1.0)):
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % max(1, total // 10) == 0 or step + 1 == total:
            means = {name: value / sums["steps"] for name, value in sums.items() if name != "steps"}
            curves.append({"phase": phase, "step": step + 1, **means})
            line = " ".join(f"{name} {value:.4f}" for name, value in means.items())
            log.info("prefer: %s %d/%d %s", phase, step + 1, total, line)
            sums = {}
        if (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < total:
            decoder, state = policy.decoder.state_dict(), optimizer.state_dict()
            _save(work, key, _Progress(number, step + 1, begun, decoder, state, sums, curves))


def _rate(step: int, total: int) -> float:
    """Warm-up, then a half cosine to a tenth."""
    return min(1.0, (step + 1) / min(_WARMUP_STEPS, total)) * (
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
    )


def _save(work: Path, key: str, progress: _Progress) -> None:
    with atomic_folder(work, KIND, key) as folder:
        torch.save(vars(progress), folder / STATE)


def _resume(work: Path, key: str) -> _Progress | None:
    if not work.is_dir():
        return None
    try:
        if open_artifact(work, KIND, verify=True)["key"] == key:
            progress = _Progress(**torch.load(work / STATE, map_location="cpu", weights_only=True))
            log.info("prefer: resuming at step %d of phase %d", progress.step, progress.phase + 1)
            return progress
    except UserError as error:
        log.warning("prefer: checkpoint is broken and is not used (%s)", str(error).split(";")[0])
    shutil.rmtree(work, ignore_errors=True)
    return None
