"""The loop over phases and steps: every step's randomness follows from its place alone, so a stopped stage goes on to the same decoder."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import numpy as np
import torch

from genrec.artifacts.folders import atomic_folder, open_artifact
from genrec.errors import UserError
from genrec.preference.phases import School
from genrec.training.batches import step_seed

log = logging.getLogger(__name__)
KIND, STATE = "preference checkpoint", "state.pt"
_WARMUP = 20


def learn(school: School, work: Path, key: str, seed: int) -> list[dict]:
    """Run the phases; returns the curves, a row each tenth of a phase. Resumes from ``work`` where a stage with the same key was stopped.

    Raises ``UserError`` where the decoder stops being finite: nothing of it is kept.
    """
    settings, policy = school.settings, school.policy
    state = _resume(work, key)
    curves: list[dict] = state["curves"] if state else []
    for place, phase in enumerate(settings.phases):
        if state and place < state["phase"]:
            continue
        resumed = state if state and place == state["phase"] else None
        if resumed:
            policy.decoder.load_state_dict(resumed["begun"])
            policy.version += 1
        rows = school.prepare(phase)
        if not len(rows):
            log.info("prefer: %s: no request teaches anything, skipped", phase)
            continue
        begun = {name: value.clone() for name, value in policy.decoder.state_dict().items()}
        per_epoch = -(-len(rows) // settings.batch_size)
        total = per_epoch * settings.epochs
        optimizer = torch.optim.AdamW(policy.decoder.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        first, sums = 0, {}
        if resumed:
            policy.decoder.load_state_dict(resumed["decoder"])
            policy.version += 1
            optimizer.load_state_dict(resumed["optimizer"])
            first, sums = resumed["step"], resumed["sums"]
        log.info("prefer: %s: %d requests, %d steps", phase, len(rows), total)
        for step in range(first, total):
            epoch, number = divmod(step, per_epoch)
            order = np.random.default_rng([seed, place, epoch]).permutation(rows)
            batch = np.sort(np.array_split(order, per_epoch)[number])
            generator = torch.Generator().manual_seed(step_seed(seed, place, step, 0))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate(step, total)
            optimizer.zero_grad()
            loss, seen = school.step(phase, batch, generator)
            if not torch.isfinite(loss):
                raise UserError(
                    f"preference: the loss of {phase} is not finite at step {step}; lower preference.learning_rate"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.decoder.parameters(), 1.0)
            optimizer.step()
            policy.version += 1
            for name, value in (("loss", float(loss.detach())), *seen.items()):
                sums[name] = sums.get(name, 0.0) + value
            sums["steps"] = sums.get("steps", 0.0) + 1
            if (step + 1) % max(1, total // 10) == 0 or step + 1 == total:
                means = {name: value / sums["steps"] for name, value in sums.items() if name != "steps"}
                curves.append({"phase": phase, "step": step + 1, **means})
                log.info(
                    "prefer: %s %d/%d %s",
                    phase,
                    step + 1,
                    total,
                    " ".join(f"{name} {value:.4f}" for name, value in means.items()),
                )
                sums = {}
            if (step + 1) % settings.checkpoint_steps == 0 and step + 1 < total:
                _save(work, key, {
                    "phase": place, "step": step + 1, "begun": begun, "decoder": policy.decoder.state_dict(), "optimizer": optimizer.state_dict(),
                    "sums": sums, "curves": curves,
                })  # fmt: skip
    return curves


def _rate(step: int, total: int) -> float:
    """Warm-up, then a half cosine to a tenth."""
    return min(1.0, (step + 1) / min(_WARMUP, total)) * (
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
    )


def _save(work: Path, key: str, state: dict) -> None:
    with atomic_folder(work, KIND, key) as folder:
        torch.save(state, folder / STATE)


def _resume(work: Path, key: str) -> dict | None:
    if not work.is_dir():
        return None
    try:
        if open_artifact(work, KIND, verify=True)["key"] == key:
            state = torch.load(work / STATE, map_location="cpu", weights_only=True)
            log.info("prefer: going on at step %d of phase %d", state["step"], state["phase"] + 1)
            return state
    except UserError as error:
        log.warning("prefer: checkpoint is broken and is not used (%s)", str(error).split(";")[0])
    shutil.rmtree(work, ignore_errors=True)
    return None
