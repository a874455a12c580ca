"""Lightning's trainer as a fit uses it: devices, precision, callbacks and progress lines."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from genrec.config.schema import Config, TrainingConfig
from genrec.errors import UserError
from genrec.progress import Progress, in_notebook
from genrec.training.checkpoints import Checkpoints, FolderIO
from genrec.training.data_module import FitPlan
from genrec.training.distributed import launched, rank_and_world
from genrec.training.precision import lightning_precision

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 60


def check_launch(settings: TrainingConfig) -> None:
    """Raise ``UserError`` where ``strategy`` does not fit the number of processes."""
    if settings.strategy == "fsdp" and launched() == 1:
        raise UserError(
            "training.strategy=fsdp shards over processes and there is one; start more with: torchrun --standalone "
            "--nproc-per-node N -m genrec.cli train CONFIG, or use training.strategy=ddp"
        )


def _strategy(settings: TrainingConfig, decoder_only: bool) -> str | Strategy:
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(launched(), 1, save_distributed_checkpoint=False)
    if launched() == 1:
        return "auto"
    # Every step of the decoder alone uses all its parameters. What a batch of a whole network trains can differ between
    # processes (a batch without a query, say). Buffers are constant tables, the same in every process.
    return DDPStrategy(find_unused_parameters=not decoder_only, broadcast_buffers=False)


def make_trainer(config: Config, plan: FitPlan, work: Path, keeper: Checkpoints, log_every: int) -> L.Trainer:
    """A trainer for ``plan`` that keeps its checkpoints in ``work``."""
    choosing, settings = plan.epochs is None, config.training
    callbacks: list[Callback] = [keeper, ProgressLines(plan.label, keeper)]
    if choosing:
        patience = settings.patience + settings.align_epochs + settings.cooccur_epochs
        callbacks.append(EarlyStopping("val/quality", mode="max", patience=patience, check_on_train_epoch_end=False))
    if plan.report is not None:
        callbacks.append(ReportQuality(plan.report))
    if (sys.stderr.isatty() or in_notebook()) and not rank_and_world()[0]:
        callbacks.append(FitProgress(plan.label))
    return L.Trainer(
        **trainer_options(settings, plan.backbone_folder is not None),
        accumulate_grad_batches=settings.accumulate or 1,
        max_epochs=plan.epochs or settings.epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(work.parent / "tensorboard", work.name.lstrip("."), version=""),
        limit_val_batches=1.0 if choosing else 0,
        log_every_n_steps=log_every,
    )


def trainer_options(settings: TrainingConfig, decoder_only: bool) -> dict[str, Any]:
    """The trainer's arguments that all fits share: devices, precision, checkpoint folders, clipping.

    ``decoder_only``: every step uses all parameters.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, tips
    warnings.filterwarnings("ignore", module="lightning")  # advice on loggers and numbers of workers
    return {
        "accelerator": settings.accelerator,
        "devices": local,
        "num_nodes": launched() // local,
        "strategy": _strategy(settings, decoder_only),
        "precision": lightning_precision(settings),
        "plugins": [FolderIO()],
        "use_distributed_sampler": False,
        "gradient_clip_val": 1.0,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def fit_or_interrupt(trainer: L.Trainer, module: L.LightningModule, state: Path | None, data: Any = None) -> None:
    """Train to the end, from a checkpoint's ``state`` where there is one; ``KeyboardInterrupt`` where it is stopped."""
    try:
        trainer.fit(module, data, ckpt_path=state, weights_only=True)
    except SystemExit as stop:  # Lightning answers Ctrl+C with sys.exit(1)
        raise KeyboardInterrupt from stop
    if trainer.interrupted:
        raise KeyboardInterrupt


class FitProgress(Callback):
    """A bar over all steps of a fit, on a terminal or in a notebook's cell."""

    def __init__(self, label: str):
        self.label = label
        self.progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.progress = Progress(self.label, total, patience=0.0).__enter__()
        self.progress.advance(trainer.current_epoch * int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it on."""
        if self.progress is not None:
            self.progress.advance(1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the terminal to others."""
        if self.progress is not None:
            self.progress.__exit__()
            self.progress = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The same where the fit is stopped."""
        self.on_train_end(trainer, pl_module)


class ReportQuality(Callback):
    """Tells somebody the validation quality of every epoch."""

    def __init__(self, report: Callable[[int, float], None]):
        self.report = report

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand over epoch and quality."""
        if "val/quality" in trainer.callback_metrics:
            self.report(trainer.current_epoch, float(trainer.callback_metrics["val/quality"]))


class ProgressLines(Callback):
    """Progress lines: what is fitted, how far it is, how good it is, how long it may take.

    One line per epoch, and one a minute inside a long epoch.
    """

    def __init__(self, label: str, keeper: Checkpoints):
        self.label, self.keeper = label, keeper
        self.start = self.last = time.monotonic()
        self.before = 0.0  # epochs that were done when this process began

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where this process began."""
        self.start = self.last = time.monotonic()
        self.before = self._done(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line a minute inside a long epoch."""
        if time.monotonic() - self.last < SECONDS_BETWEEN_LINES or batch_idx + 1 >= trainer.num_training_batches:
            return
        share = (batch_idx + 1) / trainer.num_training_batches
        self._line(trainer, f"{share:.0%} of epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The line of an epoch; its loss is that of the last step that was logged."""
        losses = [row["train/loss"] for row in self.keeper.rows if row.get("train/loss") is not None]
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        parts += [f"loss {losses[-1]:.3f}"] if losses else []
        if "val/quality" in trainer.callback_metrics:
            parts.append(f"validation quality {float(trainer.callback_metrics['val/quality']):.4f}")
        self._line(trainer, ", ".join(parts), finished=1)

    def _done(self, trainer: L.Trainer) -> float:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return trainer.current_epoch + batches / max(trainer.num_training_batches, 1)

    def _line(self, trainer: L.Trainer, text: str, finished: int = 0) -> None:
        self.last = time.monotonic()
        done = trainer.current_epoch + 1 if finished else self._done(trainer)
        rest = (self.last - self.start) / max(done - self.before, 1e-9) * ((trainer.max_epochs or 0) - done)
        left = f"; at most {max(rest / 60, 0.1):.1f} min left" if rest > 1 else ""
        log.info("%s: %s%s", self.label, text, left)
