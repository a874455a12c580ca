"""What to fit, and the key of the result. Importing it does not import Lightning, so that opening a run stays quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genrec.artifacts.folders import fingerprint, open_artifact
from genrec.config.load import to_dict
from genrec.config.schema import SEQUENCE_ROWS, Config
from genrec.data.dataset import TRAIN
from genrec.model.saved import KIND

if TYPE_CHECKING:
    from genrec.model.network import GenerativeRecommender

TRAIN_VERSION = 11
# Settings that do not change the result: a run stopped on one machine may go on on another.
NON_RESULT_SETTINGS = (
    "refit",
    "accelerator",
    "strategy",
    "checkpoint_minutes",
)
# Settings of the code decoder: a network without one does not depend on them, so another decoder can use the same
# backbone.
DECODER_SETTINGS = (
    "pointer",
    "prior",
    "decoder_layers",
    "decoder_epochs",
    "distill_weight",
    "generate_weight",
    "generate_share",
)


@dataclass(frozen=True)
class WarmStart:
    """Train an existing network on newer events instead of a fresh one on all.

    ``network`` was fitted on a catalogue that the present one begins with, and on the first ``learnt`` (n_users,)
    events of each of its users. ``steps`` optimiser steps read windows with events behind those, and ``replay`` is the
    fraction of older windows among them.
    """

    network: GenerativeRecommender
    learnt: np.ndarray
    steps: int
    replay: float


@dataclass
class FitPlan:
    """What to fit: on train or train + validation (``last``), for how long, with which of the network's answers."""

    last: int = TRAIN
    epochs: int | None = None  # None: choose on validation
    generate: bool = True
    searches: bool = True
    recommends: bool = True
    network: str = "genrec"  # or a baseline, of ``SEQUENCE_ROWS``
    backbone_folder: Path | None = None  # a fitted model without a decoder: only the decoder is fitted, on top of it
    warm_start: WarmStart | None = None  # how the weights came about is no part of the key
    report: Callable[[int, float], None] | None = None  # gets epoch (from 0) and quality; may raise to stop the fit

    @property
    def label(self) -> str:
        """What progress lines call this fit."""
        if self.network != "genrec":
            name = f"{SEQUENCE_ROWS[self.network]} baseline"
        elif self.backbone_folder is not None:
            name = "code decoder"
        else:
            tasks = {"recommendations": self.recommends, "search": self.searches}
            name = "backbone" + (" and code decoder" if self.generate else "")
            name += ", " + " + ".join(task for task, learnt in tasks.items() if learnt)
        return name if self.last == TRAIN else f"{name}, on train + validation"


def model_key(config: Config, ids_key: str, plan: FitPlan) -> str:
    """The fingerprint of everything a fitted network depends on."""
    unread = () if plan.generate else DECODER_SETTINGS
    model = {name: value for name, value in to_dict(config.model).items() if name not in unread}
    if not model.get("situation"):  # a network without is the one that it was before there was such a setting
        model.pop("situation", None)
    skipped = (*NON_RESULT_SETTINGS, *unread)
    training = {name: value for name, value in to_dict(config.training).items() if name not in skipped}
    what = {name: value for name, value in vars(plan).items() if name not in ("backbone_folder", "warm_start")}
    backbone = open_artifact(plan.backbone_folder, KIND)["key"] if plan.backbone_folder else None
    return fingerprint(TRAIN_VERSION, ids_key, config.text.language, model, training, config.seed, what, backbone)
