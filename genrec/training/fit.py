"""Fit a network on a prepared dataset with Lightning; resumable, early-stopped on validation, saved as plain tensors."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from safetensors.torch import load_file, save_file

from genrec.artifacts.folders import atomic_folder, fingerprint, is_current, open_artifact, write_json
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import to_dict
from genrec.config.schema import Config, TrainingConfig
from genrec.data.dataset import TRAIN, VALID, Dataset, Requests
from genrec.data.impressions import ImpressionLog, load_impressions, stage_indices
from genrec.errors import UserError
from genrec.model.anchors import SPARE, AnchorTables
from genrec.model.batch import Batch
from genrec.model.collate import Collator, impression_windows, request_batches
from genrec.model.network import GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.model.sasrec import SASRec
from genrec.model.saved import KIND, build_network
from genrec.model.size import step_flops
from genrec.ranking.features import category_levels, item_codes
from genrec.ranking.ranker import seen_mask
from genrec.retrieval.neighbours import cooccurrence_neighbours, items_after_words, top_of_category_and_brand
from genrec.text.encoder import item_texts
from genrec.text.query_tokens import WORD_BUCKETS, hashed_tokens, readable
from genrec.training import checkpoints
from genrec.training.batches import EpochLoader
from genrec.training.checkpoints import Checkpoints
from genrec.training.curriculum import BACKBONE_EPOCHS, DECODER_EPOCHS, SASREC_EPOCHS, Curriculum, epochs_by_size
from genrec.training.curves import plot_curves
from genrec.training.distributed import join, launched, leader_first, on_gpu, rank_and_world
from genrec.training.module import TrainingModule

log = logging.getLogger(__name__)
TRAIN_VERSION = 6
EPOCHS = {"genrec": BACKBONE_EPOCHS, "sasrec": SASREC_EPOCHS}
CPU_PARTS = 4  # of a step, by rule: on a CPU padding costs as much as what is real
# Settings that say how a network is fitted, not to what: a run stopped on one machine may go on on another.
NON_RESULT_SETTINGS = (
    "refit",
    "compile",
    "threads",
    "accelerator",
    "devices",
    "strategy",
    "checkpoint_minutes",
    "checkpoint_steps",
)
# Settings of the code decoder: a network without one does not depend on them, so another decoder stands on the trunk that is there.
DECODER_SETTINGS = (
    "pointer", "decoder_layers",
    "decoder_epochs", "decoder_learning_rate", "distill_weight", "distill_temperature", "generate_weight", "generate_share",
)  # fmt: skip


@dataclass
class FitPlan:
    """What to fit: on train or train + validation (``last``), for how long, with which of the network's answers."""

    last: int = TRAIN
    epochs: int | None = None  # None: choose on validation
    generate: bool = True
    searches: bool = True
    recommends: bool = True
    network: str = "genrec"  # or sasrec, the baseline
    backbone_folder: Path | None = None  # a fitted model without a decoder: only the decoder is fitted, on top of it


class ValidationLoader:
    """Validation requests of one process, with the items each has already had as a mask (B, n_items), made batch by batch.

    Recommendations, and half as many searches over all kinds of query, so that no answer is paid for with another that nobody looks at;
    or one of the two alone, where the network learns nothing else. A search masks nothing: what one had may be sought again.
    """

    def __init__(
        self, dataset: Dataset, collator: Collator, limit: int, seed: int, shown: ImpressionLog | None = None, recommends: bool = True,
        searching: bool = True,
    ):  # fmt: skip
        parts, limit = [], limit or 1 << 62
        if recommends:
            parts.append((dataset.requests("valid"), limit))
            limit = -(-min(limit, len(parts[0][0])) // 2)
        if searching or not recommends:
            parts.append((searches(dataset), limit))
        rank, world = rank_and_world()
        self.n_items = dataset.n_items
        self.chunks = []
        for requests, most in parts:
            if len(requests) > most:
                requests = requests.take(np.sort(np.random.default_rng(seed).permutation(len(requests))[:most]))
            self.chunks += request_batches(requests.take(np.arange(rank, len(requests), world)), collator, 64)
        self.shown: list[Batch] = []
        if shown is not None and rank == 0:  # ranked by one process: an area under a curve is no mean of its parts
            index = np.flatnonzero(shown.split == VALID)
            if limit and len(index) > limit:
                index = np.sort(np.random.default_rng(seed).permutation(index)[:limit])
            index = index[np.argsort(shown.before[index] - dataset.offsets[:-1][shown.users[index]], kind="stable")]
            self.shown = [
                collator.impression_batch(shown, index[begin : begin + 256]) for begin in range(0, len(index), 256)
            ]

    def __len__(self) -> int:
        return len(self.chunks) + len(self.shown)

    def __iter__(self) -> Iterator:
        for _, chunk, batch in self.chunks:
            recommends = (chunk.request_queries < 0).all()
            yield (
                batch,
                seen_mask(chunk, self.n_items)
                if recommends
                else torch.zeros(len(chunk), self.n_items, dtype=torch.bool),
            )
        yield from ((batch, None) for batch in self.shown)


def searches(dataset: Dataset) -> Requests:
    """All validation searches, one kind of query after the other."""
    wanted = dataset.heldout_queries.filter(pl.col("event").is_in(dataset.heldout_events("valid")))
    return dataset.requests_before(wanted["event"].to_numpy(), wanted["query"].to_numpy())


class TrainingData(L.LightningDataModule):
    """Epoch loaders of windows, and validation requests with their already-had items."""

    def __init__(self, dataset: Dataset, ids: SemanticIds, config: Config, plan: FitPlan):
        super().__init__()
        self.dataset, self.settings, self.seed, self.plan = dataset, config.training, config.seed, plan
        self.allow_zero_length_dataloader_with_multiple_devices = True  # validation: more processes than requests
        stages = stage_indices(dataset, config.model.stages) if config.model.stages else None
        distil = config.training.keyword_distill_weight > 0 and plan.searches and plan.backbone_folder is None
        self.collator = training_collator(dataset, ids, config, distil, stages)
        self.curriculum = Curriculum(dataset, self.collator, config, plan.last, plan.searches, plan.recommends, distil)
        self.windows = self.curriculum.windows
        self.shown: ImpressionLog | None = None
        if config.model.stages and config.model.ranking:
            self._read_shown(config.model.stages, plan.last)
        if not self.curriculum.counts.any():
            raise UserError(
                "no training request: no user has two events before the split; give more data, or another split.kind"
            )

    def _read_shown(self, stages: list[str], last: int) -> None:
        """Make what was shown up to split ``last`` further requests of the windows."""
        shown = load_impressions(self.dataset, stages, last)
        if shown is None:
            raise UserError(
                "model.ranking with model.stages: the log does not say what was shown (no impressions); use model.stages=[]"
            )
        places = impression_windows(shown, self.windows, np.asarray(self.dataset.offsets))
        keep = np.flatnonzero((shown.split <= last) & (places >= 0))
        self.shown = shown
        self.collator.impressions, self.collator.impression_windows = shown.take(keep), places[keep]
        self.curriculum.counts = self.curriculum.counts + np.bincount(places[keep], minlength=len(self.windows))
        log.info("train: %d of %d shown requests are learnt from", len(keep), len(shown))

    @property
    def counts(self) -> np.ndarray:
        """Requests of each window: (W,)."""
        return self.curriculum.counts

    @property
    def steps_per_epoch(self) -> int:
        return self.curriculum.steps

    def step_flops(self, module: TrainingModule) -> float:
        """Operations of a mean training step, by formula; see ``genrec/model/size.py``."""
        kept = self.counts > 0
        events = float((self.windows.stop - self.windows.start - 1)[kept].mean())
        network = module.network
        n_items, text_dim = network.catalogue.text.shape
        scored = module.negatives(n_items) or n_items
        size = min(self.settings.batch_size, int(kept.sum()))
        return step_flops(network.config, size, events, float(self.counts[kept].mean()), scored, n_items, text_dim)

    def train_dataloader(self) -> EpochLoader:
        return self.curriculum.loader(self.trainer.current_epoch if self.trainer else 0, *rank_and_world())

    def val_dataloader(self) -> ValidationLoader:
        return self.validation

    @cached_property
    def validation(self) -> ValidationLoader:
        tasks = self.plan.recommends, self.plan.searches
        return ValidationLoader(
            self.dataset, self.collator, self.settings.valid_requests, self.seed, self.shown, *tasks
        )


def training_collator(
    dataset: Dataset, ids: SemanticIds, config: Config, distil: bool, stages: np.ndarray | None = None
) -> Collator:
    """A collator that knows the queries, and the items' texts and keywords where the training asks for them."""
    build = lambda texts: QueryFeatures.build(texts, ids.encoder)
    texts = build(item_texts(dataset.item_table)) if config.training.align_epochs else None
    keywords = None
    if distil:
        keywords = build(
            [" ".join(word for word, _ in ids.words.keywords_of(item)) for item in dataset.item_table["item_id"]]
        )
    return Collator(
        config.model,
        build(dataset.query_texts),
        stages,
        texts=texts,
        keywords=keywords,
        target_level=dataset.target_level,
    )


class PlainProgress(Callback):
    """One line per epoch where there is no terminal. Losses are those of the last step that was written down, over all its parts."""

    def __init__(self, keeper: Checkpoints):
        self.keeper = keeper

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        values = {
            name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("train/")
        }
        rows = [row for row in self.keeper.rows if "train/loss" in row]
        values |= {
            name: value
            for name, value in (rows[-1] if rows else {}).items()
            if name.startswith("train/") and value is not None
        }
        log.info(
            "epoch %d/%d %s",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            " ".join(f"{k} {v:.4f}" for k, v in sorted(values.items())),
        )


def model_key(config: Config, ids_key: str, plan: FitPlan) -> str:
    """The fingerprint of everything a fitted network depends on."""
    unread = () if plan.generate else DECODER_SETTINGS
    model = {name: value for name, value in to_dict(config.model).items() if name not in unread}
    training = {
        name: value for name, value in to_dict(config.training).items() if name not in (*NON_RESULT_SETTINGS, *unread)
    }
    what = {name: value for name, value in plan.__dict__.items() if name != "backbone_folder"}
    backbone_folder = open_artifact(plan.backbone_folder, KIND)["key"] if plan.backbone_folder else None
    return fingerprint(TRAIN_VERSION, ids_key, model, training, config.seed, what, backbone_folder)


def new_network(
    config: Config, dataset: Dataset, ids: SemanticIds, generate: bool, kind: str = "genrec"
) -> GenerativeRecommender | SASRec:
    """A freshly initialised network; the same seed gives the same weights."""
    config = with_query_anchors(config, dataset)
    torch.manual_seed(config.seed)
    times = dataset.timestamps
    span = float(times.max() - times.min()) / config.model.time_bucket if len(times) else 1.0
    return build_network(kind, config, ids.catalogue, len(dataset.actions_chain), max(10_000.0, span), generate)


def fit(config: Config, dataset: Dataset, ids: SemanticIds, target: Path, plan: FitPlan) -> Path:
    """Train to ``target``; skipped when up to date, resumed from the last checkpoint when a run was stopped."""
    key = model_key(config, ids.key, plan)
    if is_current(target, KIND, key):
        log.info("train: up to date (%s)", target)
        return target
    torch.set_flush_denormal(
        True
    )  # Adam's second moments of rare rows become denormal and make steps several times slower
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    if plan.epochs is None and not len(dataset.heldout_events("valid")):
        raise UserError(
            f"split.kind={config.split.kind}: no validation event; users need at least 3 events, or use split.kind=global-time"
        )
    check_launch(config.training)
    join()
    config = with_query_anchors(copy.deepcopy(config), dataset)
    training = config.training
    network = new_network(config, dataset, ids, plan.generate, plan.network)
    if network.anchor_tables is not None and not plan.backbone_folder:
        fill_anchors(network.anchor_tables, dataset, plan.last)
    if training.accumulate is None:
        training.accumulate = 1 if on_gpu(training.accelerator) else CPU_PARTS
    if plan.backbone_folder:
        _load_backbone(network, plan.backbone_folder)
        training.epochs, training.learning_rate = training.decoder_epochs, training.decoder_learning_rate
        training.align_epochs = training.cooccur_epochs = 0
    if training.epochs is None:  # by the training split for the refit too: its schedule is the first fit's
        training.epochs = epochs_by_size(
            int(dataset.known_lengths(TRAIN).sum()), DECODER_EPOCHS if plan.backbone_folder else EPOCHS[plan.network]
        )
        if training.align_epochs + training.cooccur_epochs >= training.epochs:
            raise UserError(
                f"training.epochs: by this log's size {training.epochs}, which leaves none after align_epochs and cooccur_epochs; give a number"
            )
    data = TrainingData(dataset, ids, config, plan)
    categories = torch.from_numpy(item_codes(category_levels(dataset.item_table).list.last()))
    known, counted = None, dataset.item_counts(plan.last)
    if not training.cold_negatives and not counted.all():
        known = torch.from_numpy(np.flatnonzero(counted))
    if training.compile:
        compile_layers(network)
    module = TrainingModule(network, config, data.steps_per_epoch, plan.backbone_folder is not None, categories, known)
    work = target.parent / f".{target.name}-{key}"
    size = sum(parameter.numel() for parameter in network.parameters())
    log.info("train: %s parameters, %d windows, %d steps per epoch, about %.1f GFLOP a step%s", f"{size:,}", len(data.windows),
             data.steps_per_epoch, data.step_flops(module) / 1e9, " before the code decoder" if plan.generate else "")  # fmt: skip
    keeper = _train(config, plan, work, module, data)
    with leader_first():
        if not is_current(target, KIND, key):
            _write(target, key, config, plan, module, work / keeper.best, keeper.rows)
        elif not rank_and_world()[0]:
            log.info("train: %s was made by another process", target)
    shutil.rmtree(work, ignore_errors=True)
    return target


def with_query_anchors(config: Config, dataset: Dataset) -> Config:
    """The config with ``model.query_anchors`` said: by rule, where there are anchors to join and queries to ask."""
    model = config.model
    if model.query_anchors is None:
        model = replace(model, query_anchors=model.anchors > 0 and bool(dataset.query_texts))
    return replace(config, model=model)


def fill_anchors(tables: AnchorTables, dataset: Dataset, last: int) -> None:
    """Count what goes with what, up to split ``last``."""
    width = SPARE * tables.per_event
    counted = cooccurrence_neighbours(dataset.histories(last), dataset.n_items, width)
    tables.fill(counted, top_of_category_and_brand(dataset.item_table, counted.users, width))
    if tables.queries is not None:
        rows, tokens = hashed_tokens(readable(dataset.query_texts))
        order = np.argsort(rows, kind="stable")
        offsets = np.searchsorted(rows[order], np.arange(len(dataset.query_texts) + 1))
        event = np.flatnonzero((np.asarray(dataset.split) <= last) & (np.asarray(dataset.queries) >= 0))
        asked, taken = (np.asarray(part[event]).astype(np.int64) for part in (dataset.queries, dataset.items))
        tables.queries.fill(
            items_after_words(tokens[order], offsets, asked, taken, WORD_BUCKETS, dataset.n_items, width)
        )


def compile_layers(network: GenerativeRecommender) -> None:
    """Compile every Transformer layer where it stands; names and weights stay."""
    for layer in (*network.backbone.blocks, *([] if network.decoder is None else network.decoder.layers)):
        layer.compile(dynamic=True)


def _load_backbone(network: GenerativeRecommender, backbone_folder: Path) -> None:
    """Give the network a fitted trunk's weights and fix all but the decoder."""
    wrong = network.load_state_dict(load_file(backbone_folder / "model.safetensors"), strict=False)
    missing = [name for name in wrong.missing_keys if not name.startswith("decoder.")]
    if missing or wrong.unexpected_keys:
        raise UserError(
            f"{backbone_folder}: does not fit the network ({[*missing, *wrong.unexpected_keys][0]}); delete it and run again"
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("decoder."))


def _train(config: Config, plan: FitPlan, work: Path, module: TrainingModule, data: TrainingData) -> Checkpoints:
    """Train from the newest usable checkpoint, or from the beginning, to the end."""
    log_every = max(1, data.steps_per_epoch // 4)
    keeper = Checkpoints(work, config.training, plan.epochs is None, log_every)
    trainer = _trainer(config, plan, work, keeper, log_every)
    with leader_first():
        state = checkpoints.newest(work)
    try:
        trainer.fit(module, data, ckpt_path=state, weights_only=True)
    except SystemExit as stop:  # Lightning answers Ctrl+C with sys.exit(1)
        raise KeyboardInterrupt from stop
    if trainer.interrupted:
        raise KeyboardInterrupt
    return keeper


def _write(
    target: Path, key: str, config: Config, plan: FitPlan, module: TrainingModule, best: Path, curves: list[dict]
) -> None:
    """The model folder, from the best weights."""
    epoch = open_artifact(best, checkpoints.BEST_KIND, verify=True)["info"]["epoch"]
    network, known = module.network, module.known
    weights = load_file(best / checkpoints.WEIGHTS)
    if known is not None and network.item_encoder.ids is not None:  # an id that nothing was learnt of says nothing
        unknown = torch.ones(network.catalogue.n_items, dtype=torch.bool).index_fill(0, known.cpu(), False)
        weights["item_encoder.ids.weight"][unknown] = 0
    size = sum(parameter.numel() for parameter in network.parameters())
    info = {"epochs": epoch + 1, "parameters": size, "time_base": network.time_base, "generate": plan.generate, "network": plan.network,
            "fitted_on": "train" if plan.last == TRAIN else "train+valid"}  # fmt: skip
    names = sorted({name for row in curves for name in row}, key=lambda name: ("/" in name, name))
    curves = [{name: row.get(name) for name in names} for row in curves]
    with atomic_folder(target, KIND, key, info) as folder:
        save_file(weights, folder / "model.safetensors")
        write_json(folder / "config.json", to_dict(config))
        write_json(folder / "curves.json", curves)
        plot_curves(curves, folder / "curves.png")


def check_launch(settings: TrainingConfig) -> None:
    """Raise ``UserError`` where ``devices`` and ``strategy`` do not fit how this process was started."""
    started = launched()
    if settings.devices and settings.devices != started:
        raise UserError(
            f"training.devices={settings.devices}, but {started} process{'es run' if started > 1 else ' runs'}; start with: torchrun "
            f"--standalone --nproc-per-node {settings.devices} -m genrec.cli train CONFIG training.devices={settings.devices}"
        )
    if settings.strategy == "fsdp" and started == 1:
        raise UserError(
            "training.strategy=fsdp shards over processes and there is one; start more with torchrun, or use training.strategy=ddp"
        )


def precision(settings: TrainingConfig) -> str:
    """Lightning's name of ``training.precision``; ``auto`` is bf16 on a GPU that has it, else 32."""
    chosen = settings.precision
    if chosen == "auto":
        chosen = (
            "bf16" if on_gpu(settings.accelerator) and torch.cuda.is_bf16_supported(including_emulation=False) else "32"
        )
    return {"bf16": "bf16-mixed", "32": "32-true"}[chosen]


def _strategy(settings: TrainingConfig) -> str | Strategy:
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(launched(), 1, save_distributed_checkpoint=False)
    # Which answers a batch trains can differ between processes (a batch without a query, say).
    return DDPStrategy(find_unused_parameters=True) if launched() > 1 else "auto"


def _trainer(config: Config, plan: FitPlan, work: Path, keeper: Checkpoints, log_every: int) -> L.Trainer:
    choosing, settings = plan.epochs is None, config.training
    callbacks: list[Callback] = [keeper, PlainProgress(keeper)]
    if choosing:
        callbacks.append(
            EarlyStopping(
                "val/quality",
                mode="max",
                patience=settings.patience + settings.align_epochs + settings.cooccur_epochs,
                check_on_train_epoch_end=False,
            )
        )
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1
    return L.Trainer(
        accelerator=settings.accelerator, devices=local, num_nodes=launched() // local, strategy=_strategy(settings),
        precision=precision(settings), accumulate_grad_batches=settings.accumulate, plugins=[checkpoints.FolderIO()],
        max_epochs=plan.epochs or settings.epochs, callbacks=callbacks, use_distributed_sampler=False,
        logger=TensorBoardLogger(work.parent / "tensorboard", work.name.lstrip("."), version=""), gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, enable_progress_bar=sys.stderr.isatty(), enable_model_summary=False,
        limit_val_batches=1.0 if choosing else 0, log_every_n_steps=log_every,
    )  # fmt: skip
