"""The stage ``genrec prefer``: reward model, phases, acceptance gate, report.

The first training requests are only counted for features; of the later ones those of half of the users fit the reward
model, and those of the other half train the policy. So the reward model never values what it was fitted on. Writes
``RUN/preference`` (report, reward model) and, if the gate accepts, ``RUN/model_preferred``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genrec.artifacts.folders import atomic_folder, is_current, open_artifact, read_json, write_json
from genrec.config.load import to_dict
from genrec.config.schema import PreferenceConfig
from genrec.data.dataset import TRAIN, Requests
from genrec.data.impressions import feedback_chain
from genrec.data.situation import SituationReader
from genrec.errors import UserError
from genrec.evaluation.metrics import auc, gauc
from genrec.generation.options import SearchOptions
from genrec.model.collate import Collator
from genrec.model.network import GenerativeRecommender
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import KIND as MODEL_KIND
from genrec.model.saved import RESOLVED, load_network
from genrec.model.taste import Taste
from genrec.preference.acceptance import GateDecision, GateRow, Measured, decide, markdown, measure
from genrec.preference.beam_reward import beam_agreement, by_strength, list_reward
from genrec.preference.feedback import Feedback, collect
from genrec.preference.levels import Levels, Rates
from genrec.preference.parts import draw_requests, drawn_rows, impression_rates, split_feedback, with_random_items
from genrec.preference.phases import TASTE, PhaseTrainer
from genrec.preference.policy import Policy, chunks
from genrec.preference.propensities import inverse_weights, target_propensities
from genrec.preference.reward_model import (
    TOWERS,
    RewardData,
    RewardFeatures,
    RewardModel,
    calibration,
    expected_calibration_error,
    features_before,
    fit_reward_model,
)
from genrec.preference.rewards import check_rewards
from genrec.preference.taste_fit import fit_taste
from genrec.preference.training import learn
from genrec.ranking.candidates import MISSING, CandidateGenerator
from genrec.ranking.ranker import Ranker
from genrec.runs.stages import PREFERENCE_KIND, preference_key
from genrec.training.distributed import barrier, compute_device, gather, join, rank_and_world

if TYPE_CHECKING:
    from genrec.runs.run import Run

log = logging.getLogger(__name__)
TARGET, BASE, MODEL = "preference", "model", "model_preferred"
_CHUNK = 256  # requests at a time
_FRONTIER = ("recall", "reward_ndcg", "reward")
_TEACHER_ITEMS = 50  # candidates of the re-ranker as teacher
_RERANKER_FLOOR = -30.0  # score of a missing candidate


def stage_prefer(run: Run) -> GateDecision:
    """Bring the preference stage of a run up to date and return the gate's decision.

    ``UserError`` without a fitted decoder.
    """
    settings, target = run.config.preference, run.folder / TARGET
    check_rewards(settings.rewards)
    manifest = run.stages.require("model")
    if not manifest["info"]["generate"]:
        raise UserError(
            f"{run.folder / BASE} has no code decoder (training.generate_weight=0): there is no policy to train"
        )
    key = preference_key(run.folder, run.config)
    run.save()  # its preference settings are those of the stage from now on
    if is_current(target, PREFERENCE_KIND, key):
        log.info("prefer: up to date (%s)", target)
        return read_decision(target)
    torch.set_flush_denormal(True)
    join()
    return Stage(run, key).run()


def read_decision(folder: Path) -> GateDecision:
    """The decision of a preference folder."""
    report = read_json(folder / "report.json")["gate"]
    return GateDecision(report["kept"], report["reasons"], [GateRow(**row) for row in report["rows"]])


class Stage:
    """One run of the stage; the methods stand in the order in which ``run`` takes them."""

    def __init__(self, run: Run, key: str):
        """``key`` identifies everything the result depends on."""
        self.job, self.key, self.base = run, key, run.folder / BASE
        self.settings: PreferenceConfig = run.config.preference
        try:
            network, self.fitted = load_network(self.base, len(run.dataset.actions_chain), run.ids)
        except RuntimeError as error:
            raise UserError(
                f"{self.base} does not fit the run's catalogue ({str(error).splitlines()[0]}); train again"
            ) from error
        assert isinstance(network, GenerativeRecommender)
        self.policy = Policy(network.to(compute_device(run.config.training.accelerator)))
        self.levels = Levels.build(feedback_chain(run.dataset), self.settings.levels, self.settings.order)
        self.feedback = feedback = collect(run.dataset, self.levels)
        self.parts = split_feedback(feedback, self.settings, run.config.seed, run.config.training.valid_requests)
        train = feedback.take(np.flatnonzero(feedback.split == TRAIN))
        self.rates = Rates.of_rows(train.items, train.stages, run.dataset.n_items, self.levels)
        self.situation = SituationReader.of(network, run.dataset)
        features = QueryFeatures.build(feedback.texts, run.ids.encoder)
        self.collator = Collator(self.fitted.model, features, situation=self.situation)
        text = run.ids.catalogue.text.cpu().numpy()
        self.counted = features_before(run.dataset, text, self.parts.features_until)
        self._train = train

    @cached_property
    def taste(self) -> Taste:
        """The click model of people's tastes, fitted on the training impressions."""
        return fit_taste(self.policy.text, self._train, self.levels.click, self.job.config.seed)

    @cached_property
    def features(self) -> RewardFeatures:
        """The reward model's features of candidates."""
        train, facts = self._train, self.counted.facts
        rates = impression_rates(train, self.levels, facts.brand, facts.category) if train.observed else None
        return RewardFeatures(self.policy.network, self.counted, self.taste, rates)

    def run(self) -> GateDecision:
        """Fit the reward model, train the policy, decide, and write the result."""
        run, parts = self.job, self.parts
        source = (
            "impressions of the log" if parts.policy.observed else "events and the beam's own items (no impressions)"
        )
        log.info(
            "prefer: %d requests fit the reward model, %d train the policy; feedback from %s",
            len(parts.reward),
            len(parts.policy),
            source,
        )
        model = fit_reward_model(
            self.reward_data(parts.reward, run.config.seed), self.levels.click, self.levels.order, run.config.seed
        )
        quality = {"policy requests": self.reward_quality(model, parts.policy)}
        quality["valid"] = self.reward_quality(model, parts.valid)
        for name, towers in quality.items():
            numbers = [towers["click"][measure] for measure in ("auc", "gauc", "error")]
            log.info("prefer: reward model on %s: click AUC %.4f GAUC %.4f, calibration error %.4f", name, *numbers)
        decision, curves, frontier = self.best_policy(model.to(self.policy.items.device))
        log.info("prefer: %s: %s", "kept" if decision.kept else "REFUSED", "; ".join(decision.reasons))
        if not rank_and_world()[0]:
            if decision.kept:
                self._keep()
            self._write(decision, model, quality, curves, frontier)
            shutil.rmtree(self.work(), ignore_errors=True)
        barrier()
        return decision

    def best_policy(self, model: RewardModel) -> tuple[GateDecision, list[dict], list[dict]]:
        """Train the policy at each strength and keep the best that the gate accepts.

        Returns the decision, the curves of the kept (else the last) training, and the frontier: recall and the reward
        model's value of the generated lists at each strength.
        """
        run, decoder = self.job, self.policy.decoder
        start = {name: value.clone() for name, value in decoder.state_dict().items()}
        before = self.measure("valid")
        tried: list[tuple[GateDecision, list[dict], dict, dict[str, Tensor]]] = []
        strengths = self.settings.strengths if by_strength(self.settings) else [1.0]
        for number, strength in enumerate(strengths):
            decoder.load_state_dict(start)
            self.set_taste(None)
            self.policy.version += 1
            trainer = self.trainer(model, strength)
            row: dict = {"strength": strength}
            if self.parts.valid.observed and len(self.parts.valid) and self._reads_reward():
                agreement = gather(beam_agreement(trainer, self.parts.valid, self.levels, run.config.seed))[0]
                row["beam"] = agreement.to_dict()
                if agreement.fault:
                    tried.append((GateDecision(False, [agreement.fault], []), [], row, start))
                    continue
            if number == 0:
                row["reward before"] = self._list_reward(trainer, before)
            curves = learn(trainer, self.work(strength), self.key, run.config.seed, run.config.training)
            self.set_taste(strength)
            after = self.measure("valid")
            decision = gather(decide(before, after, self.settings.tolerance, run.config.seed))[0]
            row |= after.means() | {"reward": self._list_reward(trainer, after), "kept": decision.kept}
            tried.append((decision, curves, row, {name: value.clone() for name, value in decoder.state_dict().items()}))
        kept = [one for one in tried if one[0].kept]
        best = max(kept, key=lambda one: _merit(one[2])) if kept else tried[-1]
        decoder.load_state_dict(best[3])
        self.set_taste(best[2]["strength"] if kept else None)
        self.policy.version += 1
        return best[0], best[1], [row for _, _, row, _ in tried]

    def set_taste(self, strength: float | None) -> None:
        """Order generated lists with the taste where a phase says so; None: without it."""
        network = self.policy.network
        network.taste = None
        if strength is not None and TASTE in self.settings.phases:
            network.taste = self.taste
            network.taste.strength.fill_(strength)

    def _reads_reward(self) -> bool:
        """Whether a phase learns from the reward model."""
        phases, grpo = (
            self.settings.phases,
            "grpo" in self.settings.phases and self.settings.rewards.get("model", 0) > 0,
        )
        by_value = "distil" in phases and self.settings.teacher == "reward"
        return bool(grpo or by_value or {"plackett-luce", TASTE} & set(phases))

    def work(self, strength: float | None = None) -> Path:
        """The folder of checkpoints; that of one strength lies in it."""
        folder = self.job.folder / f".{TARGET}-{self.key}"
        return folder if strength is None else folder / f"strength-{strength:g}"

    def _list_reward(self, trainer: PhaseTrainer, measured: Measured) -> float:
        """The reward model's mean value of the validation lists of the first task."""
        requests = next(iter(self._tasks("valid").values()))
        assert len(requests) == len(measured.lists)
        return list_reward(trainer, self._task_collator, requests, measured.lists)

    @cached_property
    def _task_collator(self) -> Collator:
        """The collator of the gate's requests, whose query texts are the dataset's."""
        features = QueryFeatures.build(self.job.dataset.query_texts, self.job.ids.encoder)
        return Collator(self.fitted.model, features, situation=self.situation)

    def reward_data(self, part: Feedback, seed: int) -> RewardData:
        """Features and stages of the rows of a part.

        A log without impressions gets random items as further rows: they were not chosen (stage -1).
        """
        items, stages = with_random_items(part, self.job.dataset.n_items, seed)
        order = torch.arange(len(part))

        def padded() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            counted = bool((part.split == TRAIN).all())
            for rows, inputs in chunks(self.policy, self.collator, part.requests, _CHUNK, part.users, counted):
                width = int((items[rows] >= 0).sum(1).max())
                ids = torch.from_numpy(items[rows, :width]).to(inputs.device)
                reached = torch.from_numpy(np.where(items[rows, :width] < 0, -2, stages[rows, :width]))
                features = self.features(inputs.requests, inputs.users, inputs.batch, ids, inputs.state).cpu()
                yield features, reached, order[torch.from_numpy(rows)]

        return RewardData.join(padded())

    def reward_quality(self, model: RewardModel, part: Feedback) -> dict:
        """AUC, GAUC by user and calibration of each tower, on a part that the model was not fitted on."""
        if not len(part):
            return {name: {"auc": nan, "gauc": nan, "error": nan, "curve": []} for name in TOWERS}
        data = self.reward_data(part, self.job.config.seed + 1)
        predicted = model.predict(data.features)
        stages, users = data.stages.numpy(), part.users[data.request.numpy()]
        clicked, ordered = stages >= self.levels.click, stages >= self.levels.order
        everything = np.ones(len(stages), bool)
        towers = (("click", clicked, everything), ("next", ordered, clicked), ("both", ordered, everything))
        result = {}
        for name, reached, rows in towers:
            chance = getattr(predicted, name).numpy()[rows]
            curve = calibration(chance, reached[rows]) if len(chance) else []
            areas = {"auc": auc(chance, reached[rows]), "gauc": gauc(chance, reached[rows], users[rows])}
            result[name] = areas | {"error": expected_calibration_error(curve), "curve": curve}
        return result

    def measure(self, split: str) -> Measured:
        """The gate's measures on a split, with the policy as it is now."""
        run, tasks = self.job, self._tasks(split)
        feedback, beam = getattr(self.parts, split), run.config.decoding.beam
        found = measure(self.policy, self._task_collator, tasks, feedback, self.levels, self.rates, beam, self.collator)
        return found.weighted(self.exposure_weights(split))

    def exposure_weights(self, split: str) -> np.ndarray | None:
        """Weight (N,) of each recommendation of the gate: one over the logged chance that its target was shown.

        0 where the log does not state it; None for a log without propensities.
        """
        run = self.job
        events = run.dataset.heldout_events(split)
        events = events[drawn_rows(len(events), run.config.training.valid_requests, run.config.seed)]
        return inverse_weights(target_propensities(self.feedback, run.dataset, events, self.levels))

    def _tasks(self, split: str) -> dict[str, Requests]:
        """The requests of the gate by task: recommendations first, under the name "", then each kind of search."""
        run, limit = self.job, self.job.config.training.valid_requests
        kinds: list[str | None] = [None, *run.dataset.query_kinds]
        tasks = {
            f"{kind} search" if kind else "": draw_requests(run.dataset.requests(split, kind), limit, run.config.seed)
            for kind in kinds
        }
        return {task: requests for task, requests in tasks.items() if len(requests)}

    def trainer(self, model: RewardModel, strength: float = 1.0) -> PhaseTrainer:
        """What the phases learn from; ``strength`` of the value where a phase joins it with the decoder."""
        return PhaseTrainer(
            policy=self.policy,
            collator=self.collator,
            feedback=self.parts.policy,
            levels=self.levels,
            rates=self.rates,
            features=self.features,
            model=model,
            settings=self.settings,
            category=self.counted.facts.category,
            popularity=np.log1p(self.counted.counts),
            reranker_teacher=self.reranker_teacher(),
            strength=strength,
        )

    def reranker_teacher(self) -> Callable[[np.ndarray], tuple[Tensor, Tensor]] | None:
        """The re-ranker's candidates and scores for the policy's requests, where ``preference.teacher`` names it.

        Its candidate features are counted before those requests.
        """
        if self.settings.teacher != "fused" or "distil" not in self.settings.phases:
            return None
        run, requests = self.job, self.parts.policy.requests
        rerankers = run.ranker("train").rerankers
        generator = CandidateGenerator(self.policy.network, self.counted, run.config.decoding, run.lexical)
        ranker = Ranker(generator, self.fitted.model, run.ids.encoder, run.config.decoding, rerankers)
        ids, scores, _ = ranker.rank(requests, SearchOptions(_TEACHER_ITEMS))["fused"]
        candidates = torch.from_numpy(ids)
        values = torch.from_numpy(np.where(ids == MISSING, _RERANKER_FLOOR, scores).astype(np.float32))
        device = self.policy.items.device
        return lambda rows: (candidates[rows].to(device), values[rows].to(device))

    def _keep(self) -> None:
        """Write the new decoder as a model folder, like any other."""
        network = self.policy.network
        info = dict(open_artifact(self.base, MODEL_KIND)["info"]) | {"preferred": self.key, "ids": self.job.ids.key}
        with atomic_folder(self.job.folder / MODEL, MODEL_KIND, self.key, info) as folder:
            save_file(_tensors(network), folder / "model.safetensors")
            for name, config in (("config.json", self.job.config), (RESOLVED, self.fitted)):
                write_json(folder / name, to_dict(config))

    def _write(
        self, decision: GateDecision, model: RewardModel, quality: dict, curves: list[dict], frontier: list[dict]
    ) -> None:
        """Write the report and the reward model."""
        report = {
            "gate": decision.to_dict(),
            "reward_model": quality,
            "curves": curves,
            "frontier": frontier,
            "config": to_dict(self.settings),
            "levels": dict(zip(self.levels.chain, self.levels.weights.tolist(), strict=True)),
            "seed": self.job.config.seed,
            "requests": {name: len(getattr(self.parts, name)) for name in ("reward", "policy", "valid")},
            "until": int(self.parts.policy.times.max(initial=0)),
        }
        with atomic_folder(self.job.folder / TARGET, PREFERENCE_KIND, self.key, {"kept": decision.kept}) as folder:
            save_file(_tensors(model), folder / "reward_model.safetensors")
            write_json(folder / "report.json", report)
            (folder / "report.md").write_text(_page(decision, quality, frontier))


def _merit(row: dict) -> float:
    """What a row of the frontier is chosen by: feedback of people, and a model's opinion only where there is none."""
    measured = row.get("reward_ndcg", nan)
    return row["reward"] if isnan(measured) else measured


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous().cpu() for name, value in module.state_dict().items()}


def _page(decision: GateDecision, quality: dict, frontier: list[dict]) -> str:
    lines = [f"# Preference stage: {'kept' if decision.kept else 'refused'}", ""]
    lines += [*(f"- {reason}" for reason in decision.reasons), "", markdown(decision)]
    lines += ["| reward model | tower | AUC | GAUC | calibration error |", "|---|---|---|---|---|"]
    for part, towers in quality.items():
        for name, row in towers.items():
            lines.append(f"| {part} | {name} | {row['auc']:.4f} | {row['gauc']:.4f} | {row['error']:.4f} |")
    lines += [
        "",
        "| strength | recall | reward nDCG | reward of the lists | shown in the beam, GAUC: decoder, taught | |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for row in frontier:
        beam = row.get("beam")
        judged = "" if beam is None or not beam["users"] else f"{beam['decoder']:.4f}, {beam['taught']:.4f}"
        values = " | ".join(f"{row[name]:.4f}" if name in row else "-" for name in _FRONTIER)
        lines.append(f"| {row['strength']:g} | {values} | {judged} | {'kept' if row.get('kept') else 'refused'} |")
    return "\n".join(lines) + "\n"
