"""A model that reads the situation of requests, end to end: API, command line, HTTP bodies, bundle and erasure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.generation.options import SearchOptions
from genrec.inference.bundle import export
from genrec.inference.histories import build_requests
from genrec.inference.predict import predictions, request_table, write_requests
from genrec.inference.programs import Prefill, example_batch
from genrec.inference.recommender import Recommender
from genrec.inference.requests import RecommendationRequest, StoredUsers
from genrec.pipeline.stages import stage_train
from genrec.runs.run import Run
from genrec.serving.schemas import RankBody, RecommendBody
from genrec.training.fit import fitted_situation
from genrec.training.plan import FitPlan, model_key

ATTRIBUTES = ["age_group", "country"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_overrides) -> Run:
    """A tiny run that reads everything its log tells, with vectors large enough to matter."""
    more = ("name=situated", "model.situation=[auto]", "training.refit=false", "training.learning_rate=0.02")
    short = ("training.epochs=1", "training.decoder_epochs=1")
    made = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), *more, *short))
    stage_train(made)
    return made


@pytest.fixture(scope="module")
def model(run) -> Recommender:
    return Recommender.load(run.folder)


@pytest.fixture(scope="module")
def bundled(run, tmp_path_factory):
    return export(run.folder, tmp_path_factory.mktemp("bundles") / "bundle", programs=False)


def scores(answers) -> list[tuple[str, float]]:
    return [(one.item_id, one.score) for one in answers]


def person(model) -> tuple[str, dict[str, str]]:
    """A user and their attributes."""
    row = model.dataset.users.row(3, named=True)
    return row["user_id"], {name: row[name] for name in ATTRIBUTES}


def other(model, attributes: dict[str, str]) -> dict[str, str]:
    column = model.dataset.users["country"]
    return attributes | {"country": column.filter(column != attributes["country"])[0]}


def test_a_known_users_attributes_are_read_and_stated_ones_replace_them(model):
    assert model.ranker.situation.situation.names == [*ATTRIBUTES, "surface"]
    user, own = person(model)
    for mode in ("fused", "retrieve", "generate"):
        expected = scores(model.recommend(user, mode=mode))
        assert scores(model.recommend(user, mode=mode, attributes=own)) == expected
        assert scores(model.recommend(user, mode=mode, attributes=other(model, own))) != expected
        assert scores(model.recommend(user, mode=mode, surface=model.dataset.surface_names[0])) != expected
    found = model.search("scarf", user, attributes=other(model, own))
    assert scores(found) != scores(model.search("scarf", user))
    items = [one.item_id for one in found[:3]]
    assert scores(model.rank(items, user, attributes=own)) == scores(model.rank(items, user))


def test_a_history_brings_no_attributes_but_those_stated(model):
    user, own = person(model)
    history = ["i000003", "i000005"]
    alone = scores(model.recommend(history=history, mode="retrieve"))
    assert scores(model.recommend(user, history, mode="retrieve")) == alone
    assert scores(model.recommend(history=history, mode="retrieve", attributes=own)) != alone
    nothing = dict.fromkeys(own, "never seen")
    assert scores(model.recommend(history=history, mode="retrieve", attributes=nothing)) == alone


def test_an_answer_does_not_depend_on_the_other_requests(model):
    user, own = person(model)
    requests = [
        RecommendationRequest(user, mode="retrieve"),
        RecommendationRequest(user, mode="retrieve", attributes=other(model, own)),
        RecommendationRequest(history=["i000003"], mode="retrieve", surface=model.dataset.surface_names[-1]),
    ]
    for request, response in zip(requests, model.ask(requests), strict=True):
        alone = model.ask([request])[0].items
        assert [one.item_id for one in alone] == [one.item_id for one in response.items]
        np.testing.assert_allclose(
            [one.score for one in alone], [one.score for one in response.items], rtol=0, atol=1e-4
        )


def test_what_the_model_does_not_read_is_refused(model, trained_run):
    with pytest.raises(UserError, match="reads no 'size'; it reads age_group, country"):
        model.recommend(attributes={"size": 3})
    plain = Recommender.load(trained_run.folder)
    with pytest.raises(UserError, match="reads no 'age_group'; it reads none"):
        plain.recommend(attributes={"age_group": "18-24"})
    with pytest.raises(UserError, match="surface: the model does not read it"):
        plain.recommend(surface="feed")
    refused = RecommendationRequest(attributes={"size": 3})
    with pytest.raises(UserError, match="size"):
        model.ask([refused], strict=False)


def test_a_bundle_holds_the_attributes_that_are_read_and_answers_alike(model, bundled, run):
    opened = Recommender.load(bundled)
    user, own = person(model)
    assert opened.dataset.users.columns == ["user_id", *ATTRIBUTES]
    for request in ({"user": user}, {"history": ["i000003"], "attributes": own, "surface": "feed"}):
        assert scores(opened.recommend(**request)) == scores(model.recommend(**request))


def test_a_bundle_without_users_holds_no_attributes(run, model, tmp_path):
    opened = Recommender.load(export(run.folder, tmp_path / "bundle", users=False))
    _, own = person(model)
    assert not len(opened.dataset.users)
    request = {"history": ["i000003"], "attributes": own}
    assert scores(opened.recommend(**request)) == scores(model.recommend(**request))


def test_attributes_of_an_erased_person_are_not_read(model):
    user, _ = person(model)
    times, queries = np.array([np.nan]), [None]
    for erased, known in ((set(), True), ({user}, False)):
        stored = StoredUsers([], {}, erased)
        requests = build_requests(model.dataset, model.snapshot, [user], times, queries, stored=stored, strict=False)
        rows = model.ranker.collator(requests.query_texts).requests(requests).situation
        assert bool(rows.any()) is known and (requests.users[0] >= 0) is np.bool_(known)


@pytest.mark.parametrize("kind", [None, "logged"])
def test_written_requests_are_answered_as_the_evaluation_answers(run, model, tmp_path, kind):
    write_requests(run.folder, tmp_path, "test", kind)
    table, histories = request_table(pl.read_parquet(tmp_path / "requests.parquet"), "requests")
    assert {*ATTRIBUTES, "surface"} <= set(table.columns)
    answers = predictions(model, table, histories, 5, "retrieve", True)
    lists = model.ranker.rank(run.dataset.requests("test", kind), SearchOptions(5, ("retrieve",)))["retrieve"]
    names = run.dataset.item_table["item_id"]
    expected = [names[int(item)] for row in lists.ids for item in row if item >= 0]
    assert answers["item_id"].to_list() == expected


def test_the_command_line(genrec, run, model):
    user, own = person(model)
    given = [part for name, value in own.items() for part in ("--attribute", f"{name}={value}")]
    code, out, _ = genrec("recommend", run.folder, "--user", user, *given, "--surface", "feed", "-k", "3")
    assert code == 0 and out.count("\n") > 3
    code, _, err = genrec("search", run.folder, "scarf", "--attribute", "size=3")
    assert code == 2 and "reads no 'size'" in err
    code, _, err = genrec("recommend", run.folder, "--attribute", "age_group")
    assert code == 2 and "'age_group' is not NAME=VALUE" in err


def test_http_bodies(model):
    user, own = person(model)
    body = {"user_id": user, "attributes": own, "surface": "feed", "mode": "retrieve"}
    request = RecommendBody.model_validate(body).to_request()
    assert request.attributes == own and request.surface == "feed"
    ranked = RankBody.model_validate(body | {"candidates": ["i000003"]}).to_request()
    assert ranked.attributes == own and ranked.surface == "feed"
    with pytest.raises(ValueError, match="attributes"):
        RecommendBody.model_validate({"attributes": {"country": {"nested": 1}}})


def test_a_network_without_has_the_key_it_always_had(run):
    config, plan = run.config, FitPlan()
    without = replace(config, model=replace(config.model, situation=[]))
    keys = {model_key(one, "ids", plan) for one in (config, without)}
    assert len(keys) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "genrec.training.plan.to_dict",
            lambda section: {name: value for name, value in vars(section).items() if name != "situation"},
        )
        before = model_key(without, "ids", plan)
        assert model_key(config, "ids", plan) == before  # nothing but the setting tells the two apart
    assert "situation" not in str(before)


def test_an_update_keeps_the_fields_of_its_network(run, model):
    network = model.ranker.generator.network
    start = SimpleNamespace(network=network, learnt=np.zeros(0), steps=1, replay=0.0)
    kept = fitted_situation(run.config, run.dataset, FitPlan(warm_start=start))
    assert kept is network.situation.situation
    anew = fitted_situation(run.config, run.dataset, FitPlan(last=TRAIN))
    assert anew == kept and fitted_situation(run.config, run.dataset, FitPlan(network="sasrec")) is None


@torch.inference_mode()
def test_the_exported_prefill_reads_it(model):
    generator = model.ranker.generator
    network, text_dim = generator.network, generator.network.catalogue.text.shape[1]
    batch = example_batch(network, 3, 5, text_dim)
    one, _ = Prefill(network)(batch, generator.items)
    two, _ = Prefill(network)([*batch[:-1], torch.zeros_like(batch[-1])], generator.items)
    assert not torch.equal(one, two)
