"""What a training learns from: tasks, stages, and the two objectives of searches."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genrec.artifacts.folders import read_json
from genrec.config.load import load_config
from genrec.data.dataset import TRAIN, VALID
from genrec.errors import UserError
from genrec.objectives.category import category_cross_entropy
from genrec.objectives.self_distillation import self_distillation
from genrec.training.curriculum import (
    ALIGN,
    BACKBONE_EPOCHS,
    CO_OCCUR,
    PERSONALISE,
    Curriculum,
    epochs_by_size,
    stage_name,
)
from genrec.training.fit import FitPlan, TrainingData, ValidationLoader, fit, new_network, training_collator
from genrec.training.module import TrainingModule


@pytest.fixture(scope="module")
def job(synthetic_run):
    config = copy.deepcopy(synthetic_run.config)
    config.training.epochs, config.training.align_epochs, config.training.cooccur_epochs = 4, 1, 1
    return config, synthetic_run.dataset, synthetic_run.ids


def parts(job, epoch: int, searches: bool = True, recommends: bool = True, distil: bool = False):
    config, data, ids = job
    curriculum = Curriculum(
        data, training_collator(data, ids, config, distil), config, TRAIN, searches, recommends, distil
    )
    return curriculum, list(curriculum.loader(epoch, 0, 1))


def train_events(data) -> np.ndarray:
    return np.flatnonzero(np.asarray(data.split) == TRAIN)


def test_the_stage_of_an_epoch(job):
    assert [stage_name(job[0].training, epoch) for epoch in range(4)] == [ALIGN, CO_OCCUR, PERSONALISE, PERSONALISE]


def test_epochs_by_size_fall_from_the_most_to_the_fewest():
    assert [epochs_by_size(events, BACKBONE_EPOCHS) for events in (0, 200_000, 400_000, 1_000_000, 10**9)] == [
        20,
        20,
        10,
        4,
        4,
    ]


def test_epochs_not_given_are_set_by_the_training_split_for_both_fits(job, tmp_path):
    config = copy.deepcopy(job[0])
    config.training.epochs, config.training.align_epochs, config.training.cooccur_epochs = None, 0, 0
    for name, plan in (
        ("model", FitPlan(generate=False, epochs=1)),
        ("model_refit", FitPlan(last=VALID, generate=False, epochs=1)),
    ):
        folder = fit(config, job[1], job[2], tmp_path / name, plan)
        assert read_json(folder / "config.json")["training"]["epochs"] == 20
    config.training.align_epochs = 20
    with pytest.raises(UserError, match=r"training\.epochs"):
        fit(config, job[1], job[2], tmp_path / "other", FitPlan(generate=False, epochs=1))


def test_align_asks_every_item_by_its_own_text_without_history(job):
    config, data, ids = job
    curriculum, found = parts(job, 0)
    items = np.concatenate([part.batch.targets.ravel().numpy() for part in found])
    counts = np.bincount(items, minlength=data.n_items)
    assert len(set(counts.tolist())) == 1 and counts[0] >= 1 and len(found) == curriculum.steps
    for part in found[:3]:
        batch = part.batch
        assert not batch.positions.any() and (batch.request_queries > 0).all() and not batch.request_times.any()
        asked = batch.query_text[batch.request_queries[:, 0] - 1].numpy()
        wanted = ids.encoder.encode([_text(data, item) for item in batch.targets[:, 0]])
        np.testing.assert_allclose(asked, wanted, atol=1e-5)
        network = new_network(config, data, ids, generate=False).eval()
        other = copy.copy(batch)
        other.items = (batch.items + 1) % data.n_items
        assert torch.equal(network.encode(batch).requests, network.encode(other).requests), (
            "whatever stands in the context is not seen"
        )


def _text(data, item) -> str:
    from genrec.text.encoder import item_texts
    from genrec.text.query_tokens import readable

    return readable(item_texts(data.item_table))[int(item)]


def test_co_occur_sees_one_event_and_searches_see_none(job):
    config, data, _ = job
    curriculum, found = parts(job, 1)
    recommended, searched = [], []
    for part in found:
        batch = part.batch
        live, asked = batch.targets >= 0, batch.request_queries > 0
        assert (
            batch.items.shape[1] == 1
            and (batch.positions[live & ~asked] == 1).all()
            and not batch.positions[asked].any()
        )
        row, lane = (live & ~asked).nonzero(as_tuple=True)
        recommended += list(zip(batch.items[row, 0].tolist(), batch.targets[row, lane].tolist(), strict=True))
        searched += batch.targets[live & asked].tolist()
    events = train_events(data)
    owner = np.searchsorted(data.offsets, events, side="right")
    later = events[1:][owner[1:] == owner[:-1]]
    assert sorted(recommended) == sorted(zip(data.items[later - 1].tolist(), data.items[later].tolist(), strict=True))
    with_query = events[np.asarray(data.queries)[events] >= 0]
    assert sorted(searched) == sorted(data.items[with_query].tolist())
    assert abs(len(found) - curriculum.steps) <= 1 and len(recommended) + len(searched) == curriculum.counts.sum()


def test_tasks_leave_the_other_requests_out(job):
    for searches, recommends in ((True, True), (True, False), (False, True)):
        curriculum, found = parts(job, 3, searches, recommends)
        asked = sum(int((part.batch.request_queries > 0).sum()) for part in found)
        live = sum(int((part.batch.targets >= 0).sum()) for part in found)
        assert live == curriculum.counts.sum() and (asked > 0) == searches and (live > asked) == recommends


def test_a_search_only_network_is_chosen_by_searches(job):
    config, data, ids = job
    loader = ValidationLoader(data, training_collator(data, ids, config, False), 0, 1, recommends=False)
    asked = np.concatenate([chunk.request_queries for _, chunk, _ in loader.chunks])
    kinds = [data.requests("valid", kind) for kind in data.query_kinds]
    assert (asked >= 0).all() and len(asked) == sum(map(len, kinds))
    batch, seen = next(iter(loader))
    chunk = loader.chunks[0][1]
    assert not seen[torch.arange(len(chunk)), torch.from_numpy(chunk.targets)].all(), (
        "a validation target may not be hidden with the history"
    )


def test_a_network_for_both_is_chosen_by_both(job):
    config, data, ids = job
    loader = ValidationLoader(data, training_collator(data, ids, config, False), 0, 1)
    kinds = [set((chunk.request_queries >= 0).tolist()) for _, chunk, _ in loader.chunks]
    assert all(len(kind) == 1 for kind in kinds), "a chunk asks one thing"
    searched, recommended = (
        sum(len(chunk) for (_, chunk, _), kind in zip(loader.chunks, kinds, strict=True) if kind == {asked})
        for asked in (True, False)
    )
    assert recommended == len(data.requests("valid")) and searched == min(
        (recommended + 1) // 2, sum(len(data.requests("valid", kind)) for kind in data.query_kinds)
    )
    for (batch, seen), kind in zip(loader, kinds, strict=True):
        assert seen.any() != (kind == {True}) and ((batch.request_queries > 0) == (kind == {True})).all()
    assert all(
        (chunk.request_queries < 0).all()
        for _, chunk, _ in ValidationLoader(
            data, training_collator(data, ids, config, False), 0, 1, searching=False
        ).chunks
    )


def test_the_teacher_sees_keywords_and_only_them_besides(job):
    config, data, ids = job
    _, found = parts(job, 3, distil=True)
    part = next(part for part in found if part.teacher is not None)
    batch, teacher = part.batch, part.teacher
    for name in ("items", "actions", "queries", "times", "positions", "request_times", "targets"):
        assert torch.equal(getattr(batch, name), getattr(teacher, name))
    asked = batch.request_queries > 0
    assert (
        torch.equal(asked, teacher.request_queries > 0)
        and (teacher.request_queries[asked] > len(batch.query_text)).all()
    )
    row, lane = (coordinate[0] for coordinate in asked.nonzero(as_tuple=True))
    item = data.item_table["item_id"][int(batch.targets[row, lane])]
    tokens = lambda one, query: set(one.query_words[int(one.query_offsets[query]) : _end(one, query)].tolist())
    plain, told = (
        tokens(batch, batch.request_queries[row, lane] - 1),
        tokens(teacher, teacher.request_queries[row, lane] - 1),
    )
    from genrec.model.query_features import QueryFeatures

    keywords = QueryFeatures.build([" ".join(word for word, _ in ids.words.keywords_of(item))], ids.encoder)
    assert plain <= told and told == plain | set(keywords.words.tolist()) and told != plain
    own, key = batch.query_text[batch.request_queries[row, lane] - 1], torch.from_numpy(keywords.text[0])
    expected = torch.nn.functional.normalize(own + key, dim=0)
    torch.testing.assert_close(
        teacher.query_text[teacher.request_queries[row, lane] - 1], expected, atol=1e-5, rtol=1e-4
    )
    network = new_network(config, data, ids, generate=False).eval()
    with torch.no_grad():
        one, two = network.encode(batch).requests, network.encode(teacher).requests
    torch.testing.assert_close(one[~asked], two[~asked], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one[asked], two[asked], atol=1e-3)


def _end(batch, query) -> int:
    offsets = torch.cat([batch.query_offsets, torch.tensor([len(batch.query_words)])])
    return int(offsets[int(query) + 1])


def test_distillation_equals_kl_and_does_not_move_the_teacher():
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    p, q = teacher.softmax(-1), student.softmax(-1)
    loss = self_distillation(student, teacher)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(-1).mean())
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_category_cross_entropy_by_hand():
    items = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [5.0, 5.0]])
    categories = torch.tensor([0, 0, 1, -1])
    requests = torch.nn.functional.normalize(torch.randn(4, 2), dim=-1).requires_grad_()
    loss = category_cross_entropy(requests, items, torch.tensor([1, 2, 3, 0]), categories, 0.5)
    first = torch.nn.functional.normalize(torch.tensor([1.0, 0.0]) + torch.tensor([0.5, 0.5]).sqrt(), dim=0)
    logits = requests[[0, 1, 3]] @ torch.stack([first, torch.tensor([0.0, 1.0])]).T / 0.5
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])))
    nothing = category_cross_entropy(requests, items, torch.tensor([3]), categories, 0.5)
    assert float(nothing) == 0


def test_search_losses_only_move_with_searches(job):
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.training.category_weight = config.training.keyword_distill_weight = 0.5
    _, found = parts(job, 3, distil=True)
    part = next(part for part in found if part.teacher is not None)
    network = new_network(config, data, ids, generate=False).eval()
    categories = torch.arange(data.n_items) % 5
    module = TrainingModule(network, config, 1, categories=categories)
    module.log = lambda *args, **kwargs: None
    module.trainer = SimpleNamespace(global_rank=0, current_epoch=0)
    encoded, live = network.encode(part.batch), part.batch.targets >= 0
    table = None
    module.teacher = part.teacher
    whole = float(module.search_losses(part.batch, encoded, live, table))
    module.teacher = None
    category = float(module.search_losses(part.batch, encoded, live, table))
    assert whole > category > 0
    assert float(module.search_losses(part.batch, encoded, live & (part.batch.request_queries == 0), table)) == 0


def test_a_staged_training_with_both_objectives(job, tmp_path):
    """One fit with everything on; its curves name the stages' losses, and another setting gives other weights."""
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.training.category_weight, config.training.keyword_distill_weight = 0.2, 0.1
    staged = fit(config, data, ids, tmp_path / "staged", FitPlan(epochs=4, generate=False))
    names = set().union(*read_json(staged / "curves.json"))
    assert {"train/category", "train/distil", "train/retrieve"} <= names
    plain = fit(job[0], data, ids, tmp_path / "plain", FitPlan(epochs=4, generate=False))
    one, two = (load_file(folder / "model.safetensors") for folder in (staged, plain))
    assert one.keys() == two.keys() and not torch.equal(one["item_encoder.ids.weight"], two["item_encoder.ids.weight"])


def test_errors(prepare_table, synthetic_run, tmp_path):
    for override, message in {
        "training.tasks=[]": "learns nothing", "training.tasks=[ranking]": "'ranking' is not one of", "training.epochs=3 training.align_epochs=3": "leaves no epoch",
        "training.category_weight=-1": "must not be below 0",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_config(None, override.split())
    with pytest.raises(UserError, match="the teacher reads keywords"):
        load_config(None, ["training.keyword_distill_weight=0.1", "semantic_ids.keywords=false"])
    data = prepare_table([{"user_id": f"u{u}", "item_id": f"i{e}", "timestamp": e} for u in range(5) for e in range(4)])
    with pytest.raises(UserError, match="no training request"):
        TrainingData(data, synthetic_run.ids, load_config(None), FitPlan(recommends=False))


def test_without_same_time_no_request_sees_its_own_second(prepare_table, job):
    """One purchase written as several events, each with a query of its own, must not give its item away."""
    rows = [("u", 1, "a", "x"), ("u", 1, "a", "y"), ("u", 2, "b", None), ("u", 2, "c", "z"), ("u", 2, "c", "x"), ("u", 3, "d", "y"),
            ("w", 1, "b", "x"), ("w", 5, "a", None), ("w", 5, "a", "y"), ("w", 6, "e", "z")]  # fmt: skip
    names = ("user_id", "timestamp", "item_id", "query")
    data = prepare_table(
        [dict(zip(names, row, strict=True)) | {"split": "train"} for row in rows], None, "split.kind=given"
    )
    config = copy.deepcopy(job[0])
    config.training.align_epochs = config.training.cooccur_epochs = 0
    for strict in (False, True):
        config.training.same_time = not strict
        for searches, recommends in ((True, True), (True, False), (False, True)):
            curriculum = Curriculum(
                data, training_collator(data, job[2], config, False), config, VALID, searches, recommends, False
            )
            batch = curriculum.loader(0, 0, 1).part(0).batch
            live = batch.targets >= 0
            assert live.sum() == curriculum.counts.sum()
            row, lane = live.nonzero(as_tuple=True)
            for one, two in zip(row.tolist(), lane.tolist(), strict=True):
                seen = batch.items[one, : batch.positions[one, two]].tolist()
                if strict:
                    assert int(batch.targets[one, two]) not in seen or len(seen) > 2
            if strict and recommends:
                assert (batch.positions[live & (batch.request_queries == 0)] > 0).all()


def test_items_own_texts_may_ask_for_an_item_nobody_had(job):
    """While they do, a whole softmax runs over all items; then over those with a training event alone, by the ids of these."""
    config, data, ids = copy.deepcopy(job[0]), *job[1:]
    config.training.negatives, config.training.align_epochs = 0, 1
    known = torch.arange(0, data.n_items, 2)
    module = TrainingModule(new_network(config, data, ids, generate=False), config, 1, known=known)
    module.trainer = SimpleNamespace(global_rank=0, current_epoch=0)
    assert module.candidates(torch.tensor([1, 3]), 0) is None
    module.trainer.current_epoch = 1
    found = module.candidates(known[[2, 5]], 0)
    assert torch.equal(found.ids, known) and found.place(known[[2, 5]]).tolist() == [2, 5]
