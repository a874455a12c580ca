"""The preference stage on a tiny run: what is kept and what is refused, resume, who sees what, and the command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genrec.artifacts.folders import atomic_folder, open_artifact, read_json
from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.model.anchors import n_features as n_anchor_features
from genrec.model.pair_features import n_pair_features
from genrec.model.ranking import RankingHead
from genrec.model.saved import RESOLVED
from genrec.pipeline.stages import stage_evaluate
from genrec.preference import acceptance, phases, rewards, training
from genrec.preference.acceptance import Measured, decide
from genrec.preference.phases import PhaseTrainer
from genrec.preference.reward_model import fit_reward_model
from genrec.preference.stage import MODEL, Stage, stage_prefer
from genrec.runs.run import Run
from tests.generation.reference import exact_scores
from tests.training.processes import in_processes

FAST = ("preference.max_requests=400",)


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Few, cheap steps."""
    monkeypatch.setattr(training, "BATCH_SIZE", 128)
    monkeypatch.setattr(phases, "BEAM", 10)
    monkeypatch.setattr(phases, "SAMPLES", 4)


# Fifty searches and a hundred people: a hit more or less is a fifth of the recall.
LENIENT = ("preference.tolerance=0.6",)


def trainer_of(run: Run) -> tuple[Stage, PhaseTrainer]:
    stage = Stage(run, "key")
    model = fit_reward_model(
        stage.reward_data(stage.parts.reward, 1), stage.levels.click, stage.levels.order, 1, epochs=1
    )
    return stage, stage.trainer(model)


def damage(run: Run) -> None:
    """Noise on the decoder's weights, as a model folder of its own: there is something to win back."""
    folder, manifest = run.folder / "model", open_artifact(run.folder / "model", "model")
    weights = load_file(folder / "model.safetensors")
    configs = {name: (folder / name).read_text() for name in ("config.json", RESOLVED)}
    generator = torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if name.startswith("decoder.") and value.ndim > 1:
            weights[name] = value + torch.randn(value.shape, generator=generator) * value.std()
    with atomic_folder(folder, "model", manifest["key"], manifest["info"]) as target:
        save_file(weights, target / "model.safetensors")
        for name, text in configs.items():
            (target / name).write_text(text)


def test_the_command_keeps_a_better_decoder_and_the_run_knows_it(copied_run, genrec, monkeypatch):
    monkeypatch.setattr(acceptance, "AUC_TOLERANCE", 0.05)
    run = copied_run()
    damage(run)
    before = load_file(run.folder / "model" / "model.safetensors")
    more = (*FAST, *LENIENT, "preference.phases=[distil,dpo]", "preference.learning_rate=0.005", "preference.epochs=3")
    code, out, err = genrec("prefer", run.folder, *more)
    assert code == 0 and "kept: better" in out, out + err
    assert copied_run().fitted == ["train", "preferred", "train+valid"]
    after = load_file(run.folder / MODEL / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed) and before.keys() == after.keys()
    open_artifact(run.folder / MODEL, "model", verify=True)
    report = read_json(run.folder / "preference" / "report.json")
    assert report["gate"]["kept"] and {row["name"] for row in report["gate"]["rows"]} == {
        "recall", "ndcg", "logged search recall", "logged search ndcg", "coverage", "diversity", "auc", "gauc",
        "reward_ndcg", "exposure-weighted recall", "exposure-weighted ndcg",
    }  # fmt: skip
    assert (run.folder / "preference" / "report.md").read_text().count("|") > 50
    stamp = (run.folder / MODEL / "manifest.json").stat().st_mtime_ns
    assert (
        genrec("prefer", run.folder, *more)[0] == 0
        and (run.folder / MODEL / "manifest.json").stat().st_mtime_ns == stamp
    )  # up to date
    code, out, err = genrec(
        "recommend", run.folder, "--user", "u000001", "--mode", "generate", "--fitted-on", "preferred", "-k", "3"
    )
    assert code == 0 and "i0" in out, err
    result = stage_evaluate(copied_run("evaluation.baselines=[popularity]"), "valid")
    names = {row.model for row in result.rows}
    assert {"genrec, generation alone", "genrec, generation alone, after preference"} <= names
    assert any("generation alone, after preference, minus before" in line for line in result.comparisons())
    assert genrec("prefer", run.folder, "training.epochs=3")[0] == 2
    code, _, err = genrec("prefer", run.folder, "preference.phases=[ppo]")
    assert code == 2 and "ppo" in err and "\n" not in err.strip()


def test_a_hacked_reward_is_refused(copied_run, monkeypatch):
    """With popularity as the only reward, the decoder recommends fewer items and is refused.

    The prior of the retrieval head is not trained and keeps lists apart: it takes a high learning rate.
    """
    monkeypatch.setattr(phases, "prefix_matches", lambda paths, targets: None)
    monkeypatch.setitem(rewards.REWARDS, "popularity", lambda sampled: sampled.popularity[sampled.items])
    run = copied_run(
        *FAST, "preference.phases=[grpo]", "preference.rewards={popularity: 1.0, model: 0.0, behaviour: 0.0}",
        "preference.anchor=0",
        "preference.kl=0", "preference.learning_rate=0.1", "preference.epochs=10", "preference.max_requests=256",
    )  # fmt: skip
    decision = stage_prefer(run)
    report = read_json(run.folder / "preference" / "report.json")
    curve = [row["reward_popularity"] for row in report["curves"]]
    assert curve[-1] > curve[0] + 0.05  # the exploit worked ...
    # ... and was caught
    assert not decision.kept and any("coverage" in reason for reason in decision.reasons), decision
    assert not (run.folder / MODEL).exists() and run.fitted == ["train", "train+valid"]
    rows = {row.name: row for row in decision.rows}
    assert rows["coverage"].after < (1 - acceptance.BREADTH_TOLERANCE) * rows["coverage"].before


def test_a_reward_that_is_wrong_about_the_beam_never_teaches(copied_run, monkeypatch):
    run = copied_run(*FAST, "preference.phases=[distil]", "preference.teacher=reward", "preference.strengths=[5]")
    valid = Stage(run, "key").parts.valid
    clicked = set(
        zip(valid.users[valid.owner[valid.stages > 0]].tolist(), valid.items[valid.stages > 0].tolist(), strict=True)
    )

    def wrong(self, inputs, ids):
        """What was clicked on validation is worth nothing, everything else a lot."""
        pairs = [
            [(user, item) in clicked for item in row]
            for user, row in zip(inputs.users.tolist(), ids.tolist(), strict=True)
        ]
        return torch.where(torch.tensor(pairs), 1e-4, 1.0), torch.zeros(ids.shape)

    monkeypatch.setattr(PhaseTrainer, "predict", wrong)
    decision = stage_prefer(run)
    report = read_json(run.folder / "preference" / "report.json")
    beam = report["frontier"][0]["beam"]
    assert not decision.kept and "orders impressions of the beam worse" in decision.reasons[0]
    assert beam["high"] < 0 and beam["taught"] < beam["decoder"] and beam["users"] > 10
    assert not report["curves"] and not (run.folder / MODEL).exists()


def test_strengths_make_a_frontier_and_the_best_accepted_one_is_kept(copied_run, monkeypatch):
    monkeypatch.setattr(acceptance, "AUC_TOLERANCE", 1.0)
    monkeypatch.setattr(acceptance, "BREADTH_TOLERANCE", 1.0)
    run = copied_run(
        *FAST, "preference.tolerance=1", "preference.phases=[distil]", "preference.teacher=reward",
        "preference.strengths=[0,4]", "preference.anchor=0", "preference.learning_rate=0.005", "preference.epochs=2",
    )  # fmt: skip
    monkeypatch.setattr(acceptance, "_fault", lambda *_: None)
    decision = stage_prefer(run)
    weak, strong = read_json(run.folder / "preference" / "report.json")["frontier"]
    assert (weak["strength"], strong["strength"]) == (0, 4) and strong["reward"] > weak["reward before"]
    assert strong["reward"] > weak["reward"] and decision.kept
    best = max((weak, strong), key=lambda row: row["reward_ndcg"])  # held-out feedback, not the reward's own opinion
    assert {row.name: row.after for row in decision.rows}["recall"] == pytest.approx(best["recall"])
    page = (run.folder / "preference" / "report.md").read_text()
    assert "| strength | recall | reward nDCG | reward of the lists |" in page


def test_a_value_of_one_or_no_strength_leaves_the_decoders_order():
    chances, values = torch.log(torch.tensor([0.5, 0.2, 0.1])), torch.tensor([0.1, 0.9, 0.5])
    assert torch.equal(phases.regularised(chances, values, 0.0), chances)
    assert torch.equal(phases.regularised(chances, torch.ones(3), 3.0), chances)
    assert phases.regularised(chances, values, 2.0).argsort(descending=True).tolist() == [1, 2, 0]


def test_a_stopped_stage_ends_with_the_same_decoder(copied_run, monkeypatch):
    monkeypatch.setattr(acceptance, "AUC_TOLERANCE", 1.0)
    monkeypatch.setattr(training, "BATCH_SIZE", 48)
    more = (
        *FAST,
        "training.checkpoint_minutes=1e-6",
        "preference.phases=[grpo,plackett-luce]",
        "preference.tolerance=1",
    )
    actual = []
    for name, stop_at in (("whole", None), ("stopped", ("plackett-luce", 2))):
        run = copied_run(*more, name=name)
        if stop_at:
            step, calls = PhaseTrainer.step, {"n": 0}

            def breaking(self, phase, rows, generator, step=step, calls=calls, stop_at=stop_at):
                calls["n"] += phase == stop_at[0]
                if calls["n"] == stop_at[1] + 1:
                    raise KeyboardInterrupt
                return step(self, phase, rows, generator)

            monkeypatch.setattr(PhaseTrainer, "step", breaking)
            with pytest.raises(KeyboardInterrupt):
                stage_prefer(run)
            monkeypatch.setattr(PhaseTrainer, "step", step)
            assert list(run.folder.glob(".preference-*/*/2-plackett-luce/step-*/state.ckpt"))
            assert not (run.folder / "preference").exists()
        stage_prefer(run)
        actual.append(read_json(run.folder / "preference" / "report.json"))
        assert not list(run.folder.glob(".preference-*"))
    assert actual[0]["curves"] == actual[1]["curves"] and actual[0]["gate"] == actual[1]["gate"]


def test_two_processes_train_one_decoder(copied_run, tmp_path, monkeypatch):
    """Each takes half of a step's requests; one of them writes the result, which is nearly that of a process alone."""
    monkeypatch.undo()  # the processes take steps of their own size
    more = ("preference.phases=[dpo]", "preference.max_requests=256", "preference.learning_rate=0.001")
    alone, together = copied_run(*more, name="alone"), copied_run(name="together")
    stage_prefer(alone)
    in_processes([sys.executable, "-m", "genrec.cli", "prefer", str(together.folder), *more], 2, tmp_path)
    reports = [read_json(run.folder / "preference" / "report.json") for run in (alone, together)]
    for one, other in zip(*(report["curves"] for report in reports), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
        assert other["preference"] == pytest.approx(one["preference"], rel=0.05)
    before, after = ({row["name"]: row for row in report["gate"]["rows"]} for report in reports)
    assert after["recall"]["before"] == before["recall"]["before"]
    assert not list(together.folder.glob(".preference-*"))


def test_a_run_without_the_stage_is_as_it_was(copied_run):
    run = copied_run()
    assert run.fitted == ["train", "train+valid"]
    with pytest.raises(UserError, match="model_preferred does not exist"):
        run.ranker("preferred")


def test_the_reward_model_never_judges_what_it_was_fitted_on(copied_run):
    run = copied_run(*FAST, "preference.max_requests=100000")
    stage = Stage(run, "key")
    parts = stage.parts
    for part in (parts.reward, parts.policy):
        assert (part.split == TRAIN).all()
    assert parts.features_until <= min(parts.reward.times.min(), parts.policy.times.min())
    assert not np.intersect1d(parts.reward.users, parts.policy.users).size
    newest = np.quantile(stage.feedback.times[stage.feedback.split == TRAIN], 0.97)
    assert min(parts.reward.times.max(), parts.policy.times.max()) > newest  # both know where the log went last
    assert (parts.valid.split > TRAIN).all()
    counted = stage.counted
    train = (np.asarray(run.dataset.split) == TRAIN) & (np.asarray(run.dataset.timestamps) < parts.features_until)
    np.testing.assert_array_equal(
        counted.counts, np.bincount(np.asarray(run.dataset.items)[train], minlength=run.dataset.n_items)
    )


def test_a_log_without_impressions_learns_from_events_and_its_own_wrong_beams(copied_run):
    run = copied_run(
        *FAST,
        "preference.max_requests=256",
        "preference.phases=[distil,plackett-luce,dpo]",
        "preference.teacher=fused",
    )
    run.dataset.__dict__["impressions"] = None
    decision = stage_prefer(run)
    assert {row.name for row in decision.rows} == {
        "recall",
        "ndcg",
        "logged search recall",
        "logged search ndcg",
        "coverage",
        "diversity",
    }
    report = read_json(run.folder / "preference" / "report.json")
    assert [row["phase"] for row in report["curves"]] == sorted(
        (row["phase"] for row in report["curves"]), key=run.config.preference.phases.index
    )
    assert {row["phase"] for row in report["curves"]} == set(run.config.preference.phases)
    assert report["reward_model"]["valid"]["click"]["auc"] > 0.6  # what was chosen against random others
    _, trainer = trainer_of(run)
    rows = trainer.prepare("dpo")
    columns, live, _ = trainer.interaction_lists(rows, torch.Generator().manual_seed(1))
    beam = (columns[:, 1:, None] == trainer.beams[rows][:, None, :]).any(2) & live[:, 1:]
    assert (trainer.stages >= 0).sum() == len(rows) and beam.any(1).float().mean() > 0.9


def test_interaction_lists_hold_only_worse_items(copied_run):
    stage, trainer = trainer_of(copied_run(*FAST))
    rows = trainer.prepare("dpo")
    columns, live, weights = trainer.interaction_lists(rows, torch.Generator().manual_seed(1))
    columns, live = columns.numpy(), live.numpy()
    assert (
        (columns[:, 0] == trainer.targets[rows]).all() and live[:, 0].all() and (live[:, 1:].sum(1) > 0).mean() > 0.95
    )
    for row, request in enumerate(rows):
        deepest = trainer.stages[request].max()
        chosen = set(trainer.impressions[request][trainer.stages[request] == deepest])
        losers = columns[row, 1:][live[row, 1:]].tolist()
        assert not chosen & set(losers) and len(losers) == len(set(losers))
    visible = (columns[:, 1:, None] == trainer.impressions[rows][:, None, :]).any(2) & live[:, 1:]
    beam = (columns[:, 1:, None] == trainer.beams[rows].numpy()[:, None, :]).any(2) & live[:, 1:] & ~visible
    assert visible.sum() > 100 and beam.sum() > 100
    assert (weights[:, 1:][live[:, 1:]] > 0).all() and weights.max() <= phases.WEIGHT_LIMIT


def test_policy_scores_are_the_decoders_and_gradients_reach_it_alone(copied_run):
    stage, trainer = trainer_of(copied_run(*FAST))
    policy = stage.policy
    inputs = policy.encode(stage.collator, stage.parts.policy.requests.take(np.arange(8)))
    exact = exact_scores(policy.decoder, policy.memory(inputs), policy.vectors(), policy.trie)
    ids = torch.arange(policy.trie.n_items).expand(8, -1)
    mates = policy.trie.node_item_count[policy.trie.item_leaf].float().log()
    torch.testing.assert_close(policy.item_log_probabilities(inputs, ids), exact - mates, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        policy.reference_steps(inputs, policy.trie.item_path[ids]).sum(-1), exact, rtol=1e-4, atol=1e-4
    )
    policy.steps(inputs, policy.trie.item_path[ids]).sum().backward()
    graded = {name for name, parameter in policy.network.named_parameters() if parameter.grad is not None}
    assert graded and all(name.startswith("decoder.") for name in graded)


def test_features_are_as_wide_as_they_say_and_know_no_later_outcome(copied_run):
    stage = Stage(copied_run(*FAST), "key")
    part = stage.parts.reward.take(np.arange(30))
    data = stage.reward_data(part, 0)
    assert data.features.shape == (len(part.items), stage.features.width) and data.features.isfinite().all()
    rates = stage.features.rates
    last = part.requests.reference_times(False)
    table = stage.parts.reward
    row, item = 20, int(part.items[part.offsets[20]])
    counted = rates.features(np.array([-1]), np.array([item]), np.array([-1]), last[[row]])[
        0, 2
    ]  # log of showings before, a quarter
    before = (table.items == item) & (table.times[table.owner] < last[row])
    assert counted >= np.log1p(before.sum()) / 4 - 1e-6


def test_the_ranking_head_can_teach(copied_run):
    stage, trainer = trainer_of(copied_run(*FAST, "preference.teacher=ranking", "preference.max_requests=64"))
    with pytest.raises(UserError, match="no ranking head"):
        trainer.prepare("distil")
    network = stage.policy.network
    torch.manual_seed(0)
    anchors = n_anchor_features(bool(network.config.query_anchors)) if network.config.anchors else 0
    initial = np.zeros((1, n_pair_features(anchors)), np.float32)
    network.ranking = RankingHead(network.config.dim, initial, 0.0).eval()
    rows = trainer.prepare("distil")
    inputs = stage.policy.encode(stage.collator, stage.parts.policy.requests.take(rows[:5]), counted=True)
    position = torch.arange(5)
    actual = network.rank(inputs.encoded, position, torch.zeros_like(position), trainer.beams[rows[:5]])[
        ..., 0
    ].sigmoid()
    live = trainer.beams[rows[:5]] >= 0
    torch.testing.assert_close(trainer.values[rows[:5]][live], actual[live], rtol=1e-4, atol=1e-5)
    loss, seen = trainer.step("distil", rows, torch.Generator().manual_seed(1))
    loss.backward()
    assert seen["taught"] > 0 and any(parameter.grad is not None for parameter in stage.policy.decoder.parameters())
    ids, scores = trainer._candidate_teacher(inputs, rows[:5])
    assert (scores.diff(dim=1) <= 0).all() and ids.shape == scores.shape


def measured(recall, coverage=0.5, auc=0.6):
    values = np.zeros(1000)
    values[: int(recall * 1000)] = 1
    return Measured(
        np.zeros((1000, 10), int),
        {"recall": values, "ndcg": values / 2},
        {"coverage": coverage, "diversity": 0.9, "auc": auc},
    )


@pytest.mark.parametrize(
    ("after", "kept", "why"),
    [
        (measured(0.12), True, "better"),
        (measured(0.10), False, "nothing became better"),
        (measured(0.10, auc=0.65), True, "auc"),
        (measured(0.09, auc=0.65), False, "recall fell"),
        (measured(0.12, coverage=0.4), False, "coverage fell"),
        (measured(0.12, auc=0.55), False, "auc fell"),
        (measured(0.12, auc=float("nan")), False, "no number"),
    ],
)
def test_what_the_gate_keeps(after, kept, why):
    decision = decide(measured(0.10), after, 0.02, 0)
    assert decision.kept == kept and why in " ".join(decision.reasons)
