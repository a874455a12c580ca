"""Fit a network on a prepared dataset with Lightning; resumable, early-stopped on validation, saved as plain tensors."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from genrec.artifacts import atomic_folder, fingerprint, is_current, open_artifact, read_json, write_json
from genrec.config import Config, config_from_dict, to_dict
from genrec.data.dataset import TRAIN, Dataset
from genrec.data.sequences import make_windows
from genrec.errors import UserError
from genrec.model.collate import Collator, QueryFeatures, request_batches
from genrec.model.network import GenerativeRecommender
from genrec.semantic_ids.tokenize import SemanticIds
from genrec.training.batches import EpochLoader
from genrec.training.curves import plot_curves
from genrec.training.module import TrainingModule

log = logging.getLogger(__name__)
KIND = "model"
TRAIN_VERSION = 1


@dataclass
class FitPlan:
    """What to fit: on train or train + validation (``last``), for how long, with which of the network's answers."""

    last: int = TRAIN
    epochs: int | None = None  # None: choose on validation
    generate: bool = True
    searches: bool = True


class TrainingData(L.LightningDataModule):
    """Epoch loaders of windows, and validation requests with their already-had items."""

    def __init__(self, dataset: Dataset, ids: SemanticIds, config: Config, plan: FitPlan):
        super().__init__()
        self.dataset, self.settings, self.seed, self.searches = dataset, config.training, config.seed, plan.searches
        self.collator = Collator(config.model, QueryFeatures.build(dataset.query_texts, ids.encoder))
        self.windows = make_windows(dataset.offsets, dataset.known_lengths(plan.last), config.model.max_length, config.training.stride)
        self.validate = plan.epochs is None

    @property
    def steps_per_epoch(self) -> int:
        return max(1, -(-len(self.windows) // self.settings.batch_size))

    def train_dataloader(self) -> EpochLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        return EpochLoader(self.dataset, self.windows, self.collator, self.settings, self.seed, epoch, self.searches)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation_batches, batch_size=None)

    @cached_property
    def validation_batches(self) -> list:
        return list(self._validation()) if self.validate else []

    def _validation(self) -> Iterator:
        requests = self.dataset.requests("valid")
        limit = self.settings.valid_requests
        if limit and len(requests) > limit:
            requests = requests.take(np.sort(np.random.default_rng(self.seed).permutation(len(requests))[:limit]))
        for _, chunk, batch in request_batches(requests, self.collator, 64):
            seen = torch.zeros(len(chunk), self.dataset.n_items, dtype=torch.bool)
            seen[torch.from_numpy(chunk.histories.rows.astype(np.int64)), torch.from_numpy(chunk.items.astype(np.int64))] = True
            yield batch, seen


class PlainProgress(Callback):
    """One line per epoch where there is no terminal."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        log.info("epoch %d/%d %s", trainer.current_epoch + 1, trainer.max_epochs, " ".join(f"{k} {v:.4f}" for k, v in sorted(values.items())))


def model_key(config: Config, ids_key: str, plan: FitPlan) -> str:
    """The fingerprint of everything a fitted network depends on."""
    training = {name: value for name, value in to_dict(config.training).items() if name not in ("refit", "threads", "accelerator")}
    return fingerprint(TRAIN_VERSION, ids_key, to_dict(config.model), training, config.seed, plan.__dict__)


def new_network(config: Config, dataset: Dataset, ids: SemanticIds, generate: bool) -> GenerativeRecommender:
    """A freshly initialised network; the same seed gives the same weights."""
    torch.manual_seed(config.seed)
    times = dataset.timestamps
    span = float(times.max() - times.min()) / config.model.time_bucket if len(times) else 1.0
    return GenerativeRecommender(config.model, ids.catalogue, len(dataset.actions_chain), max(10_000.0, span), generate)


def fit(config: Config, dataset: Dataset, ids: SemanticIds, target: Path, plan: FitPlan) -> Path:
    """Train to ``target``; skipped when up to date, resumed from the last checkpoint when a run was stopped."""
    key = model_key(config, ids.key, plan)
    if is_current(target, KIND, key):
        log.info("train: up to date (%s)", target)
        return target
    torch.set_flush_denormal(True)  # Adam's second moments of rare rows become denormal and make steps several times slower
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if plan.epochs is None and not len(dataset.heldout_events("valid")):
        raise UserError(f"split.kind={config.split.kind}: no validation event; users need at least 3 events, or use split.kind=global-time")
    network = new_network(config, dataset, ids, plan.generate)
    data = TrainingData(dataset, ids, config, plan)
    module = TrainingModule(network, config, data.steps_per_epoch)
    work = target.parent / f".{target.name}-{key}"
    size = sum(parameter.numel() for parameter in network.parameters())
    log.info("train: %s parameters, %d windows, %d steps per epoch", f"{size:,}", len(data.windows), data.steps_per_epoch)
    trainer, best = _trainer(config, plan, work, data)
    last = work / "last.ckpt"
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    except SystemExit as stop:  # Lightning answers Ctrl+C with sys.exit(1)
        raise KeyboardInterrupt from stop
    if trainer.interrupted:
        raise KeyboardInterrupt
    chosen = best.best_model_path if plan.epochs is None else str(last)
    state = torch.load(chosen, map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("network."): value for name, value in state["state_dict"].items()})
    curves = _curves(work)
    info = {"epochs": int(state["epoch"]) + 1, "parameters": size, "time_base": network.time_base, "generate": plan.generate,
            "fitted_on": "train" if plan.last == TRAIN else "train+valid"}  # fmt: skip
    with atomic_folder(target, KIND, key, info) as folder:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
        write_json(folder / "config.json", to_dict(config))
        write_json(folder / "curves.json", curves)
        plot_curves(curves, folder / "curves.png")
    shutil.rmtree(work, ignore_errors=True)
    return target


def _trainer(config: Config, plan: FitPlan, work: Path, data: TrainingData) -> tuple[L.Trainer, ModelCheckpoint]:
    choosing = plan.epochs is None
    best = ModelCheckpoint(
        work, "best", monitor="val/quality" if choosing else None, mode="max", save_last=True, enable_version_counter=False,
        save_on_train_epoch_end=not choosing,
    )  # fmt: skip
    callbacks: list[Callback] = [best, PlainProgress()]
    if choosing:
        callbacks.append(EarlyStopping("val/quality", mode="max", patience=config.training.patience, check_on_train_epoch_end=False))
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer = L.Trainer(
        accelerator=config.training.accelerator, devices=1, max_epochs=plan.epochs or config.training.epochs, callbacks=callbacks,
        logger=[TensorBoardLogger(work.parent / "tensorboard", work.name.lstrip("."), version=""), CSVLogger(work, "csv", version=_next_part(work))], gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, enable_progress_bar=sys.stderr.isatty(), enable_model_summary=False,
        limit_val_batches=1.0 if choosing else 0, log_every_n_steps=max(1, data.steps_per_epoch // 4),
    )  # fmt: skip
    return trainer, best


def _next_part(work: Path) -> str:
    """The folder of this start's curves: the logger would delete those of an earlier, stopped one."""
    return f"{len(list(work.glob('csv/*'))):04d}"


def _curves(work: Path) -> list[dict]:
    """What was logged, over all starts; an epoch that was begun again counts once."""
    import polars as pl

    rows: list[dict] = []
    for path in sorted(work.glob("csv/*/metrics.csv")):
        part = pl.read_csv(path, infer_schema_length=None).to_dicts()
        rows = [row for row in rows if not part or row["epoch"] < part[0]["epoch"]] + part
    return rows


def load_network(folder: Path, dataset_actions: int, ids: SemanticIds) -> tuple[GenerativeRecommender, Config]:
    """The network of a model folder, in evaluation mode, with the config it was fitted with."""
    manifest = open_artifact(folder, KIND)
    config = config_from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    info = manifest["info"]
    network = GenerativeRecommender(config.model, ids.catalogue, dataset_actions, info["time_base"], info["generate"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval(), config
