"""Fitting: the same seed the same weights, a stopped run goes on as if nothing had happened, and nothing is fitted
twice."""

from __future__ import annotations

import copy
import logging
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genrec.artifacts.folders import open_artifact, read_json
from genrec.config.load import load_config
from genrec.data.dataset import TRAIN, VALID
from genrec.data.sequences import Windows, make_windows
from genrec.errors import UserError
from genrec.model import dropout
from genrec.model.anchors import AnchorTables
from genrec.model.collate import Collator, request_batches
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import load_network
from genrec.retrieval.lexical_fit import fit_lexical
from genrec.retrieval.similar_texts import SimilarTexts
from genrec.training import fit as fit_module
from genrec.training.batches import epoch_batches, even_cuts
from genrec.training.data_module import TrainingData, ValidationBatch
from genrec.training.fit import FitPlan, fit, model_key, new_network, with_rules
from genrec.training.module import TrainingModule

CHOOSING, REFIT = FitPlan(), FitPlan(VALID, 3)
EACH_STEP = 1e-9  # minutes between checkpoints


@pytest.fixture(scope="module")
def job(synthetic_run, tiny_overrides):
    config = copy.deepcopy(synthetic_run.config)
    config.training.epochs, config.training.accumulate = 3, 1
    return config, synthetic_run.dataset, synthetic_run.ids


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def fitted(job, tmp_path_factory):
    """Uninterrupted runs of both plans."""
    folder = tmp_path_factory.mktemp("fitted")
    return {"choosing": fit(*job, folder / "model", CHOOSING), "refit": fit(*job, folder / "model_refit", REFIT)}


def test_the_same_seed_gives_the_same_weights(job, fitted, tmp_path):
    torch.manual_seed(999)  # what ran before must not matter
    again = fit(*job, tmp_path / "again", CHOOSING)
    assert same(weights(again), weights(fitted["choosing"]))
    other = copy.deepcopy(job[0])
    other.seed += 1
    assert not same(weights(fit(other, *job[1:], tmp_path / "other", FitPlan(epochs=1))), weights(again))


def test_training_moves_every_weight_that_it_should(job, fitted):
    start = new_network(*job, generate=True).state_dict()
    moved = weights(fitted["choosing"])
    trie = job[2].catalogue.trie
    choices = [int(trie.child_count[slice(*trie.level_bounds[level : level + 2])].max()) for level in range(trie.depth)]
    assert max(choices[:2]) > 1
    without = {
        f"decoder.heads.{level}.bias" for level in range(trie.depth) if choices[level] == 1
    }  # a level with one child each says nothing
    still = {name for name, value in start.items() if torch.equal(value, moved[name])}
    assert still == without


class StoppedError(Exception):
    """Stands for a kill: nothing is saved after it."""


def stopped_at(patch, position: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Make training stop before the batch ``position`` (epoch, index); returns the list of trained batches."""
    seen: list[tuple[int, int]] = []
    train_step = TrainingModule.training_step

    def step(self, batch, index):
        if (self.current_epoch, index) == position:
            raise StoppedError
        seen.append((self.current_epoch, index))
        return train_step(self, batch, index)

    patch.setattr(TrainingModule, "training_step", step)
    return seen


@pytest.mark.parametrize(
    ("plan", "position", "each_step"),
    [
        ("choosing", (1, 0), False),
        ("choosing", (1, 3), True),
        ("choosing", (2, 1), True),
        ("refit", (2, 1), False),
        ("refit", (1, 2), True),
        ("refit", (0, 3), True),
    ],
)
def test_a_stopped_run_goes_on_as_if_uninterrupted(job, fitted, tmp_path, monkeypatch, plan, position, each_step):
    config, *rest = job
    config = copy.deepcopy(config)
    config.training.checkpoint_minutes = EACH_STEP if each_step else 0.0
    target, how = tmp_path / "model", CHOOSING if plan == "choosing" else REFIT
    with monkeypatch.context() as patch:
        before = stopped_at(patch, position)
        with pytest.raises(StoppedError):
            fit(config, *rest, target, how)
    assert not target.exists()
    with monkeypatch.context() as patch:
        after = stopped_at(patch, None)
        fit(config, *rest, target, how)
    per_epoch = max(index for epoch, index in after if epoch == 2) + 1
    lost = 0 if each_step else position[1]
    assert after[0] == (position[0], position[1] - lost), "more was trained again than since the last checkpoint"
    assert len(before) - lost + len(after) == 3 * per_epoch
    assert same(weights(target), weights(fitted[plan]))
    assert open_artifact(target, "model")["info"] == open_artifact(fitted[plan], "model")["info"]
    assert read_json(target / "curves.json") == read_json(fitted[plan] / "curves.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tensorboard"]


def test_a_run_stopped_inside_a_step_of_several_parts_goes_on(job, tmp_path, monkeypatch):
    config = copy.deepcopy(job[0])
    training = config.training
    training.accumulate, training.negatives, training.checkpoint_minutes, training.batch_size = 2, 20, EACH_STEP, 48
    whole = fit(config, *job[1:], tmp_path / "whole", REFIT)
    with monkeypatch.context() as patch:
        stopped_at(patch, (1, 5))
        with pytest.raises(StoppedError):
            fit(config, *job[1:], tmp_path / "model", REFIT)
    with monkeypatch.context() as patch:
        again = stopped_at(patch, None)
        fit(config, *job[1:], tmp_path / "model", REFIT)
    assert again[0] == (1, 4) and same(weights(tmp_path / "model"), weights(whole))
    assert read_json(tmp_path / "model" / "curves.json") == read_json(whole / "curves.json")


def test_ctrl_c_is_a_keyboard_interrupt(job, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)  # Lightning's shutdown turns Ctrl+C off
    monkeypatch.setattr(TrainingModule, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(*job, tmp_path / "model", REFIT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(job, fitted, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stopped_at(patch, (2, 1))
        with pytest.raises(StoppedError):
            fit(*job, tmp_path / "model", REFIT)
    work = next(tmp_path.glob(".model-*"))
    _, newer = sorted(work.glob("step-*"))
    content = bytearray((newer / "state.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (newer / "state.ckpt").write_bytes(content)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        again = stopped_at(patch, None)
        fit(*job, tmp_path / "model", REFIT)
    assert newer.name in caplog.text and "broken" in caplog.text
    assert again[0] == (1, 0) and same(weights(tmp_path / "model"), weights(fitted["refit"]))


def test_an_early_stop_decided_before_a_kill_stays_decided(job, tmp_path, monkeypatch):
    config = copy.deepcopy(job[0])
    config.training.epochs, config.training.patience, config.training.learning_rate = 6, 1, 1e-9  # nothing improves
    whole = fit(config, *job[1:], tmp_path / "whole", CHOOSING)
    epochs = max(row["epoch"] for row in read_json(whole / "curves.json")) + 1
    assert epochs < 6
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_write", lambda *_: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            fit(config, *job[1:], tmp_path / "model", CHOOSING)
    with monkeypatch.context() as patch:
        again = stopped_at(patch, None)
        fit(config, *job[1:], tmp_path / "model", CHOOSING)
    assert again == [] and same(weights(tmp_path / "model"), weights(whole))


@pytest.fixture
def fits_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(fit_module, "new_network", refuse)


def test_up_to_date_is_skipped(job, fitted, fits_nothing, caplog):
    path = fitted["choosing"] / "model.safetensors"
    before = path.stat().st_mtime_ns
    changed = copy.deepcopy(job[0])
    changed.training.refit, changed.evaluation.ks, changed.name = False, [3], "elsewhere"
    changed.training.checkpoint_minutes = 0.0
    with caplog.at_level(logging.INFO):
        fit(changed, *job[1:], fitted["choosing"], CHOOSING)
    assert path.stat().st_mtime_ns == before and "up to date" in caplog.text


@pytest.mark.parametrize(
    "change", ["training.learning_rate=0.01", "model.dropout=0.25", "training.epochs=4", "seed=7", "training.stride=4"]
)
def test_changed_settings_fit_again(job, fitted, fits_nothing, change, tiny_overrides):
    changed = copy.deepcopy(job[0])
    section, _, name = change.split("=")[0].rpartition(".")
    position = getattr(changed, section) if section else changed
    setattr(position, name, type(getattr(position, name))(float(change.split("=")[1])))
    with pytest.raises(AssertionError, match="fitted again"):
        fit(changed, *job[1:], fitted["choosing"], CHOOSING)


def test_the_key_tells_plans_and_ids_apart(job):
    config = job[0]
    plans = [CHOOSING, REFIT, FitPlan(VALID, 2), FitPlan(generate=False), FitPlan(searches=False)]
    keys = {model_key(config, "ids", plan) for plan in plans} | {model_key(config, "other ids", CHOOSING)}
    assert len(keys) == 6


def test_round_trip(job, fitted):
    config, dataset, ids = job
    network, saved = load_network(fitted["choosing"], len(dataset.actions_chain), ids)
    assert saved == with_rules(config, dataset) and not network.training
    network_again, _ = load_network(fitted["choosing"], len(dataset.actions_chain), ids)
    requests = dataset.requests("test", "title")
    collator = Collator(config.model, QueryFeatures.build(dataset.query_texts, ids.encoder))
    _, _, batch = next(request_batches(requests, collator, 20))
    fresh = new_network(*job, generate=True).eval()
    with torch.inference_mode():
        a, b, untrained = (model.encode(batch).requests for model in (network, network_again, fresh))
    assert torch.equal(a, b) and not torch.allclose(a, untrained, atol=1e-2)
    info = open_artifact(fitted["choosing"], "model", verify=True)["info"]
    assert info["fitted_on"] == "train" and 1 <= info["epochs"] <= 3 and info["time_base"] == fresh.time_base
    refit = open_artifact(fitted["refit"], "model")["info"]
    assert refit["fitted_on"] == "train+valid" and refit["epochs"] == 3


def test_the_best_epoch_is_kept(fitted):
    curves = read_json(fitted["choosing"] / "curves.json")
    quality = {row["epoch"]: row["val/quality"] for row in curves if row["val/quality"] is not None}
    assert sorted(quality) == [0, 1, 2]
    assert open_artifact(fitted["choosing"], "model")["info"]["epochs"] == max(quality, key=quality.get) + 1


def test_losses_fall(fitted):
    curves = read_json(fitted["refit"] / "curves.json")
    losses = [row["train/loss"] for row in curves if row.get("train/loss") is not None]
    assert len(losses) > 4 and np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_nothing_to_validate_on_is_said(prepare_table, synthetic_run, tmp_path):
    data = prepare_table([{"user_id": f"u{u}", "item_id": f"i{e}", "timestamp": e} for u in range(5) for e in range(2)])
    with pytest.raises(UserError, match="no validation event"):
        fit(load_config(None), data, synthetic_run.ids, tmp_path / "model", CHOOSING)


def test_a_network_of_nan_is_not_the_best(job):
    """Comparisons with NaN are false: a broken network must not look perfect to early stopping."""
    config, dataset, ids = job
    network = new_network(*job, generate=True).eval()
    module = TrainingModule(network, config, 1)
    collator = Collator(config.model, QueryFeatures.build(dataset.query_texts, ids.encoder))
    requests = dataset.requests("valid")
    _, _, batch = next(request_batches(requests, collator, 30))
    nothing = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        network.last_event.weight.fill_(float("nan"))
        module.validation_step(ValidationBatch(batch, nothing, nothing), 0)
    assert (torch.cat(module.validation.ranks["retrieve"]) >= 10).all()


def test_the_order_of_batches_depends_on_seed_and_epoch(job):
    _, dataset, _ = job
    windows = make_windows(dataset.offsets, dataset.known_lengths(VALID), 10, 5)
    orders = [epoch_batches(windows, 32, *pair) for pair in ((1, 0), (1, 0), (1, 1), (2, 0))]
    flat = [np.concatenate(order) for order in orders]
    assert all(np.array_equal(np.sort(rows), np.arange(len(windows))) for rows in flat)
    assert (
        np.array_equal(flat[0], flat[1])
        and not np.array_equal(flat[0], flat[2])
        and not np.array_equal(flat[0], flat[3])
    )
    assert len(orders[0]) == -(-len(windows) // 32) and max(map(len, orders[0])) <= 32


def test_a_step_holds_sequences_of_all_lengths_and_its_parts_similar_ones():
    """Steps of one length weigh the requests of short sequences many times as much as those of long ones."""
    length = np.minimum(2 + np.random.default_rng(0).pareto(1.5, 4000) * 3, 50).astype(np.int64)
    stop = np.cumsum(length)
    windows = Windows(stop - length, stop - length, stop, stop)
    batches = epoch_batches(windows, 128, 1, 0, length - 1)
    means = np.array([length[rows].mean() for rows in batches])
    assert means.std() < 2 * length.std() / 128**0.5
    padded = 0
    for rows in batches:
        assert (np.diff(length[rows]) >= 0).all()
        parts = np.split(length[rows], even_cuts(length[rows], 4))
        assert len(parts) == 4
        padded += sum(part.max(initial=0) * len(part) for part in parts)
    assert padded < 0.4 * 50 * len(length)
    assert [len(part) for part in np.split(np.arange(8), even_cuts(np.full(8, 50), 4))] == [2, 2, 2, 2]


def test_the_decoder_learns_on_a_fixed_trunk(job, tmp_path):
    """Only its own weights move, and what retrieval answers stays as it was."""
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.training.decoder_epochs = 2
    backbone_folder = fit(config, data, ids, tmp_path / "trunk", FitPlan(generate=False))
    model = fit(config, data, ids, tmp_path / "model", FitPlan(backbone_folder=backbone_folder))
    before, after = weights(backbone_folder), weights(model)
    assert before.keys() < after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    fresh = new_network(config, data, ids, True).state_dict()
    moved = [name for name in after.keys() - before.keys() if not torch.equal(after[name], fresh[name])]
    assert all(name.startswith("decoder.") for name in moved) and {
        "decoder.codes.weight",
        "decoder.nodes.weight",
        "decoder.project.weight",
    } <= set(moved)
    assert model_key(config, ids.key, FitPlan(backbone_folder=backbone_folder)) != model_key(config, ids.key, FitPlan())


def test_node_vectors_of_some_nodes_equal_those_of_all(job):
    from genrec.model.node_vectors import node_means

    network = new_network(*job, True)
    trie, items = network.catalogue.trie, network.item_encoder()
    nodes = torch.arange(0, trie.n_nodes, 3)
    whole = network.decoder.node_vectors(trie, items)
    torch.testing.assert_close(
        network.decoder.some_node_vectors(trie, items, nodes), whole[nodes], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        network.decoder.some_node_vectors(trie, items, nodes, node_means(trie, items)),
        whole[nodes],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("negatives", "items", "used"), [(None, 1 << 14, 0), (None, 20_000, 2048), (0, 90_000, 0), (7, 100, 7)]
)
def test_negatives_by_rule(job, negatives, items, used):
    config = copy.deepcopy(job[0])
    config.training.negatives = negatives
    assert TrainingModule(new_network(*job, False), config, 1).negatives(items) == used


def test_settings_of_the_decoder_leave_the_trunk_as_it_is(job, tmp_path):
    """Same key, and rightly so: trained anew with every one of them changed it has the same weights."""
    config, data, ids = job
    backbone_folder, whole = FitPlan(generate=False), FitPlan()
    other = copy.deepcopy(config)
    other.model.pointer, other.model.decoder_layers = False, 2
    other.training.decoder_epochs = 3
    other.training.distill_weight = 0.0
    other.training.generate_weight, other.training.generate_share = 0.5, 0.1
    assert model_key(config, ids.key, backbone_folder) == model_key(other, ids.key, backbone_folder)
    assert model_key(config, ids.key, whole) != model_key(other, ids.key, whole)
    first, second = (
        weights(fit(one, data, ids, tmp_path / name, backbone_folder))
        for one, name in ((config, "first"), (other, "second"))
    )
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def test_queries_are_looked_up_once_for_all_fits_up_to_a_split(job, monkeypatch):
    config, dataset, ids = job
    config, lexical = with_rules(config, dataset), fit_lexical(dataset, config.text.language, config.seed)
    tables, looked_up, named = AnchorTables(dataset.n_items, config.model.anchors, True), [], []
    of = SimilarTexts.of
    monkeypatch.setattr(SimilarTexts, "of", lambda *given: looked_up.append(1) or of(*given))
    for last in (TRAIN, TRAIN, VALID):
        tables.users.fill_(last)  # as counted up to that split
        data = TrainingData(dataset, ids, config, FitPlan(last, 3))
        fit_module.find_named_items(data, ids, tables, lexical)
        named.append(data.collator.features.named)
    assert named[0] is named[1] and named[2] is not named[0] and len(looked_up) == 2


def test_dropout_follows_the_mean_history_unless_given(prepared_run, monkeypatch):
    dataset, config = prepared_run.dataset, prepared_run.config

    def rate(given):
        return with_rules(replace(config, model=replace(config.model, dropout=given)), dataset).model.dropout

    mean = dataset.known_lengths(TRAIN).mean()
    monkeypatch.setattr(dropout, "MEAN_HISTORY", mean + 1)
    assert rate(None) == dropout.SHORT_HISTORIES and rate(0.1) == 0.1 and rate(0.0) == 0.0
    monkeypatch.setattr(dropout, "MEAN_HISTORY", mean - 1)
    assert rate(None) == dropout.LONG_HISTORIES
