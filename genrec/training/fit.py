"""Fit a network on a prepared dataset with Lightning: resumable, stopped early on validation."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from genrec.artifacts.folders import atomic_folder, is_current, open_artifact, write_json
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.load import to_dict
from genrec.config.schema import SEQUENCE_ROWS, Config, TrainingConfig
from genrec.data.dataset import TRAIN, Dataset
from genrec.data.situation import Situation, resolved
from genrec.errors import UserError
from genrec.model.anchors import SPARE, AnchorTables
from genrec.model.dropout import dropout_rate
from genrec.model.network import GenerativeRecommender
from genrec.model.prior import PRIOR_CATALOGUE
from genrec.model.sasrec import SASRec
from genrec.model.saved import KIND, RESOLVED, build_network
from genrec.model.size import step_flops
from genrec.retrieval.dense import DenseRetriever
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.lexical_fit import fit_lexical
from genrec.retrieval.neighbours import (
    cooccurrence_neighbours,
    items_after_words,
    top_of_category_and_brand,
    users_by_items,
    users_of_items,
)
from genrec.retrieval.similar_texts import NamedItems, SimilarTexts
from genrec.text.query_tokens import WORD_BUCKETS, hashed_tokens, readable
from genrec.training import checkpoints
from genrec.training.checkpoints import Checkpoints
from genrec.training.curriculum import BACKBONE_EPOCHS, DECODER_EPOCHS, SASREC_EPOCHS, epochs_by_size
from genrec.training.curves import plot_curves
from genrec.training.data_module import TrainingData
from genrec.training.distributed import join, leader_first, on_gpu, rank_and_world
from genrec.training.generation_losses import TAUGHT_CATALOGUE
from genrec.training.module import TrainingModule
from genrec.training.optimizer import use_sparse_gradients
from genrec.training.plan import FitPlan, model_key
from genrec.training.trainer import check_launch, fit_or_interrupt, make_trainer
from genrec.training.warm_start import copy_weights

__all__ = ["FitPlan", "fit", "model_key", "new_network"]

log = logging.getLogger(__name__)
EPOCHS = {"genrec": BACKBONE_EPOCHS, **dict.fromkeys(SEQUENCE_ROWS, SASREC_EPOCHS)}
DECODER_LEARNING_RATE = 2e-3  # of the frozen-backbone stage
CPU_PARTS = 4  # micro-batches of a step, by rule: on a CPU padding costs as much as content


def new_network(
    config: Config,
    dataset: Dataset,
    ids: SemanticIds,
    generate: bool,
    kind: str = "genrec",
    situation: Situation | None = None,
) -> GenerativeRecommender | SASRec:
    """A freshly initialised network; the same seed gives the same weights. ``situation``: the fields it reads."""
    config = with_rules(config, dataset)
    torch.manual_seed(config.seed)
    times = dataset.timestamps
    span = float(times.max() - times.min()) / config.model.time_bucket if len(times) else 1.0
    n_actions, base = len(dataset.actions_chain), max(10_000.0, span)
    return build_network(kind, config, ids.catalogue, n_actions, base, generate, situation)


def fit(
    config: Config,
    dataset: Dataset,
    ids: SemanticIds,
    target: Path,
    plan: FitPlan,
    lexical: Callable[[], LexicalIndex] | None = None,
) -> Path:
    """Train to ``target``; skipped when up to date, resumed from the last checkpoint when a run was stopped.

    ``lexical`` gives the index of ``fit_lexical`` for the config, where the caller has it already; it is called only
    where queries have anchors to find.
    """
    key = model_key(config, ids.key, plan)
    if is_current(target, KIND, key):
        log.info("train: up to date (%s)", target)
        return target
    if plan.epochs is None and not len(dataset.heldout_events("valid")):
        raise UserError(
            f"split.kind={config.split.kind}: no validation event; users need at least 3 events, or use "
            "split.kind=global-time"
        )
    # Adam's second moments of rare rows become denormal and make steps several times slower.
    torch.set_flush_denormal(True)
    check_launch(config.training)
    join()
    given, config = config, with_rules(copy.deepcopy(config), dataset)
    _settle(config.training, dataset, plan)
    situation = fitted_situation(config, dataset, plan)
    network: Any = new_network(config, dataset, ids, plan.generate, plan.network, situation)  # SASRec: same interface
    if plan.backbone_folder:
        _load_backbone(network, plan.backbone_folder)
    elif network.anchor_tables is not None:
        fill_anchors(network.anchor_tables, dataset, plan.last)
    if plan.warm_start:
        assert isinstance(network, GenerativeRecommender)
        copy_weights(network, plan.warm_start.network, "decoder." if plan.backbone_folder else "")
    data = TrainingData(dataset, ids, config, plan, situation)
    if network.anchor_tables is not None and network.anchor_tables.queries is not None:
        words = lexical() if lexical else fit_lexical(dataset, config.text.language, config.seed)
        find_named_items(data, ids, network.anchor_tables, words)
    if rank_and_world()[1] == 1 and not on_gpu(config.training.accelerator):
        use_sparse_gradients(network)
    trained = trained_items(dataset, plan)
    module = TrainingModule(network, config, data.steps_per_epoch, plan.backbone_folder is not None, trained)
    if plan.generate and config.training.distill_weight and config.training.retrieve_weight:
        whole = dataset.n_items <= TAUGHT_CATALOGUE
        log.info("%s: the teacher is over %s", plan.label, "all items" if whole else "anchors, target and drawn items")
    work = target.parent / f".{target.name}-{key}"
    log.info("%s: %s", plan.label, _size(config, module, data))
    keeper = _train(config, plan, work, module, data)
    with leader_first():
        if not is_current(target, KIND, key):
            _write(target, key, (given, config), plan, module, work / str(keeper.best), keeper.rows)
        elif not rank_and_world()[0]:
            log.info("train: %s was made by another process", target)
    shutil.rmtree(work, ignore_errors=True)
    return target


def _settle(training: TrainingConfig, dataset: Dataset, plan: FitPlan) -> None:
    """Set what the config leaves to rules."""
    if training.accumulate is None:
        training.accumulate = 1 if on_gpu(training.accelerator) else CPU_PARTS
    if plan.backbone_folder:
        training.epochs, training.learning_rate = training.decoder_epochs, DECODER_LEARNING_RATE
        training.align_epochs = training.cooccur_epochs = 0
    if plan.warm_start:  # one pass over the chosen windows
        training.epochs, training.align_epochs, training.cooccur_epochs = 1, 0, 0
    if training.epochs is None:  # by the training split for the refit too: its schedule is the first fit's
        bounds = DECODER_EPOCHS if plan.backbone_folder else EPOCHS[plan.network]
        training.epochs = epochs_by_size(int(dataset.known_lengths(TRAIN).sum()), bounds)
        if training.align_epochs + training.cooccur_epochs >= training.epochs:
            raise UserError(
                f"training.epochs: by this log's size {training.epochs}, which leaves none after align_epochs and "
                "cooccur_epochs; give a number"
            )


def fitted_situation(config: Config, dataset: Dataset, plan: FitPlan) -> Situation | None:
    """The fields of ``model.situation`` that a fit reads; a warm start keeps those of its network.

    Values that came since are unknown to it.
    """
    if plan.warm_start:
        before = plan.warm_start.network.situation
        return None if before is None else before.situation
    names = with_rules(config, dataset).model.situation
    if plan.network != "genrec" or not names:
        return None
    situation = Situation.fit(names, dataset, plan.last)
    sizes = ", ".join(f"{field.name} ({field.size - 1} values)" for field in situation.fields)
    log.info("%s: requests tell %s", plan.label, sizes)
    return situation


def trained_items(dataset: Dataset, plan: FitPlan) -> torch.Tensor | None:
    """The items with an event up to the fit's last split, rising; None where that is all of them.

    Other items are no wrong answers for our network, which finds them by text and codes. Baselines know ids alone and
    keep them as negatives: their vectors are never learnt.
    """
    counts = dataset.item_counts(plan.last)
    return None if plan.network in SEQUENCE_ROWS or counts.all() else torch.from_numpy(np.flatnonzero(counts))


def with_rules(config: Config, dataset: Dataset) -> Config:
    """The config with the parts of the network that follow from the data.

    ``model.dropout``: by the mean history. ``model.query_anchors``: where there are queries. ``model.prior``: where the
    catalogue is small enough for a row of all items for each request. ``model.situation``: what ``auto`` stands for.
    """
    mean_history = float(dataset.known_lengths(TRAIN).mean())
    model = replace(config.model, dropout=dropout_rate(config.model.dropout, mean_history))
    if model.query_anchors is None:
        model = replace(model, query_anchors=bool(dataset.query_texts))
    if model.prior is None:
        model = replace(model, prior=dataset.n_items <= PRIOR_CATALOGUE)
    if model.situation:
        model = replace(model, situation=resolved(model.situation, dataset, model.request_time))
    return replace(config, model=model)


def fill_anchors(tables: AnchorTables, dataset: Dataset, last: int) -> None:
    """Count which items go together, up to split ``last``."""
    width = SPARE * tables.per_event
    if width:
        counted = cooccurrence_neighbours(dataset.histories(last), dataset.n_items, width)
        tables.fill(counted, top_of_category_and_brand(dataset.item_table, counted.users, width))
    else:
        had = users_by_items(dataset.histories(last), dataset.n_items)
        tables.users.copy_(torch.from_numpy(users_of_items(had)))
    if tables.queries is not None:
        rows, tokens = hashed_tokens(readable(dataset.query_texts))
        order = np.argsort(rows, kind="stable")
        offsets = np.searchsorted(rows[order], np.arange(len(dataset.query_texts) + 1))
        event = np.flatnonzero((np.asarray(dataset.split) <= last) & (np.asarray(dataset.queries) >= 0))
        queries, items = (np.asarray(column[event]).astype(np.int64) for column in (dataset.queries, dataset.items))
        counts = items_after_words(
            tokens[order], offsets, queries, items, WORD_BUCKETS, dataset.n_items, tables.queries.width
        )
        tables.queries.fill(counts)


_NAMED: WeakKeyDictionary[Dataset, tuple[tuple, LexicalIndex, NamedItems]] = WeakKeyDictionary()


def find_named_items(data: TrainingData, ids: SemanticIds, tables: AnchorTables, lexical: LexicalIndex) -> None:
    """Look up the items that each query names, once for all fits of a process up to the same split.

    Item texts as queries (alignment) name none.
    """
    assert tables.queries is not None
    dataset, features = data.dataset, data.collator.features
    key = ids.key, data.plan.last, tables.queries.width, len(features.text)
    kept, words, named = _NAMED.get(dataset, (None, None, None))
    if named is None or kept != key or words is not lexical:
        texts = DenseRetriever(ids.catalogue.text, lambda requests: requests.query_text)
        similar = SimilarTexts(texts, tables.users, tables.queries.width, lexical)
        queries = list(dataset.query_texts)
        queries += [""] * (len(features.text) - len(queries))
        named = features.with_named(queries, similar, report=True).named
        assert named is not None
        _NAMED[dataset] = key, lexical, named
    data.collator.features = replace(features, named=named)


def _size(config: Config, module: TrainingModule, data: TrainingData) -> str:
    """Parameters, windows, steps and the operations of a mean step, by formula; see ``genrec/model/size.py``."""
    network, kept = module.network, data.counts > 0
    parameters = sum(parameter.numel() for parameter in network.parameters())
    events = float((data.windows.stop - data.windows.start - 1)[kept].mean())
    n_items, text_dim = network.catalogue.text.shape
    scored = module.negatives(n_items) or n_items
    batch, requests = min(config.training.batch_size, int(kept.sum())), float(data.counts[kept].mean())
    flops = step_flops(network.config, batch, events, requests, scored, n_items, text_dim)
    text = f"{parameters:,} parameters, {len(data.windows)} windows, {data.steps_per_epoch} steps per epoch"
    return f"{text}, about {flops / 1e9:.1f} GFLOP a step{' before the code decoder' if data.plan.generate else ''}"


def _load_backbone(network: GenerativeRecommender, folder: Path) -> None:
    """Give the network a fitted backbone's weights and freeze all but the decoder."""
    wrong = network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    missing = [name for name in wrong.missing_keys if not name.startswith("decoder.")]
    if missing or wrong.unexpected_keys:
        name = [*missing, *wrong.unexpected_keys][0]
        raise UserError(f"{folder}: does not fit the network ({name}); delete it and run again")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("decoder."))


def _train(config: Config, plan: FitPlan, work: Path, module: TrainingModule, data: TrainingData) -> Checkpoints:
    """Train to the end, from the newest usable checkpoint or from the beginning."""
    log_every = max(1, data.steps_per_epoch // 4)
    keeper = Checkpoints(work, config.training, plan.epochs is None, log_every)
    trainer = make_trainer(config, plan, work, keeper, log_every)
    with leader_first():
        state = checkpoints.newest(work)
    fit_or_interrupt(trainer, module, state, data)
    return keeper


def _write(
    target: Path,
    key: str,
    configs: tuple[Config, Config],
    plan: FitPlan,
    module: TrainingModule,
    best: Path,
    curves: list[dict],
) -> None:
    """Write the model folder from the best weights, with the config as given and as resolved by rule."""
    epoch = open_artifact(best, checkpoints.BEST_KIND, verify=True)["info"]["epoch"]
    network, trained = module.network, module.trained_items
    weights = load_file(best / checkpoints.WEIGHTS)
    if trained is not None and network.item_encoder.ids is not None:  # an untrained id vector is noise
        untrained = torch.ones(network.catalogue.n_items, dtype=torch.bool).index_fill(0, trained.cpu(), False)
        weights["item_encoder.ids.weight"][untrained] = 0
    info = {
        "epochs": epoch + 1,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "time_base": network.time_base,
        "generate": plan.generate,
        "network": plan.network,
        "fitted_on": "train" if plan.last == TRAIN else "train+valid",
    }
    if isinstance(network, GenerativeRecommender) and network.situation is not None:
        info["situation"] = network.situation.situation.state()
    names = sorted({name for row in curves for name in row}, key=lambda name: ("/" in name, name))
    curves = [{name: row.get(name) for name in names} for row in curves]
    with atomic_folder(target, KIND, key, info) as folder:
        save_file(weights, folder / "model.safetensors")
        for name, config in zip(("config.json", RESOLVED), configs, strict=True):
            write_json(folder / name, to_dict(config))
        write_json(folder / "curves.json", curves)
        plot_curves(curves, folder / "curves.png")
