"""The stage ``genrec prefer``: reward model, phases, guard, report.

Training requests are dealt out by time: the first are only counted (evidence), the next fit the reward model, the last teach the policy; so the
reward model never judges what it was fitted on. ``preference.since`` makes the last part one day's log, ``preference.checkpoint`` lets an
earlier decoder go on: the streaming form. Writes ``RUN/preference`` (report, reward model) and, if the guard agrees, ``RUN/model_preferred``.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from genrec.artifacts.folders import atomic_folder, is_current, open_artifact, read_json, write_json
from genrec.config.checks import seconds_of
from genrec.config.load import to_dict
from genrec.config.schema import PreferenceConfig
from genrec.data.dataset import TEST, TRAIN, VALID, Requests
from genrec.data.impressions import feedback_chain
from genrec.data.rates import FeedbackRates
from genrec.errors import UserError
from genrec.evaluation.metrics import auc, gauc
from genrec.generation.options import SearchOptions
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.model.saved import KIND as MODEL_KIND
from genrec.model.saved import RESOLVED, load_network
from genrec.preference.acceptance import GateDecision, Measured, decide, markdown, measure
from genrec.preference.feedback import Feedback, collect
from genrec.preference.levels import Levels, Rates
from genrec.preference.phases import School
from genrec.preference.policy import Policy, chunks
from genrec.preference.reward_model import (
    TOWERS,
    RewardData,
    RewardFeatures,
    RewardModel,
    calibration,
    evidence_before,
    expected_calibration_error,
    fit_reward_model,
)  # fmt: skip
from genrec.preference.rewards import check_rewards
from genrec.preference.training import learn
from genrec.ranking.candidates import MISSING, CandidateGenerator
from genrec.ranking.ranker import Ranker
from genrec.training.distributed import on_gpu

if TYPE_CHECKING:
    from genrec.runs.run import Run
from genrec.runs.stages import PREFERENCE_KIND, preference_base, preference_key

log = logging.getLogger(__name__)
TARGET, MODEL = "preference", "model_preferred"
_CHUNK, _INVENTED, _TAUGHT = (
    256,
    20,
    50,
)  # requests at a time; invented rows beside an event of a log without impressions; fused candidates


@dataclass(frozen=True)
class Parts:
    """The training feedback by time, and what is held out."""

    reward: Feedback
    policy: Feedback
    valid: Feedback
    test: Feedback
    evidence_until: int  # seconds: where the reward part begins


def stage_prefer(run: Run) -> GateDecision:
    """Bring the preference stage of a run up to date; returns the guard's verdict. ``UserError`` without a fitted decoder."""
    settings, target = run.config.preference, run.folder / TARGET
    check_rewards(settings.rewards)
    base = preference_base(run.folder, settings)
    manifest = open_artifact(base, MODEL_KIND) if settings.checkpoint else run.stages.require("model")
    if not manifest["info"]["generate"]:
        raise UserError(f"{base} has no code decoder (training.generate_weight=0): there is no policy to train")
    key = preference_key(run.folder, run.config)
    run.save()  # its preference settings are those of the stage from now on
    if is_current(target, PREFERENCE_KIND, key):
        log.info("prefer: up to date (%s)", target)
        return read_verdict(target)
    if manifest["info"].get("ids", run.ids.key) != run.ids.key:
        raise UserError(
            f"preference.checkpoint: {base} was made for other semantic IDs than those of {run.folder}; train again"
        )
    torch.set_flush_denormal(True)
    if run.config.training.threads:
        torch.set_num_threads(run.config.training.threads)
    return Stage(run, base, key).run()


def read_verdict(folder: Path) -> GateDecision:
    """The verdict of a preference folder."""
    from genrec.preference.acceptance import GateRow

    report = read_json(folder / "report.json")["guard"]
    return GateDecision(report["kept"], report["reasons"], [GateRow(**row) for row in report["rows"]])


class Stage:
    """One run of the stage; the steps in the order in which ``run`` takes them."""

    def __init__(self, run: Run, base: Path, key: str):
        self.job, self.key, self.base = run, key, base
        self.settings: PreferenceConfig = run.config.preference
        try:
            network, self.fitted = load_network(base, len(run.dataset.actions_chain), run.ids)
        except RuntimeError as error:
            raise UserError(
                f"{base} does not fit the run's catalogue ({str(error).splitlines()[0]}); train again"
            ) from error
        self.policy = Policy(network.to("cuda" if on_gpu(run.config.training.accelerator) else "cpu"))
        self.levels = Levels.build(
            feedback_chain(run.dataset), self.settings.levels, self.settings.click, self.settings.order
        )
        feedback = collect(run.dataset, self.levels)
        self.parts = deal(feedback, self.settings, run.config.seed, run.config.training.valid_requests)
        train = feedback.take(np.flatnonzero(feedback.split == TRAIN))
        self.rates = Rates.of_rows(train.items, train.stages, run.dataset.n_items, self.levels, self.settings.smoothing)
        self.collator = Collator(self.fitted.model, QueryFeatures.build(feedback.texts, run.ids.encoder))
        text = run.ids.catalogue.text.cpu().numpy()
        self.evidence = evidence_before(run.dataset, text, self.parts.evidence_until)
        facts = self.evidence.facts
        counted = impression_rates(train, self.levels, facts.brand, facts.category) if train.observed else None
        self.features = RewardFeatures(self.policy.network, self.evidence, counted, self.settings.request_state)

    def run(self) -> GateDecision:
        job, settings = self.job, self.settings
        log.info(
            "prefer: %d requests fit the reward model, %d teach the policy; %s", len(self.parts.reward), len(self.parts.policy),
            "shown items from impressions" if self.parts.policy.observed else "no impressions in this log: events, and the beam's own items",
        )  # fmt: skip
        model = fit_reward_model(
            self.reward_data(self.parts.reward, job.config.seed), self.levels.click, self.levels.order, job.config.seed
        )
        quality = {
            name: self.judge_quality(model, part)
            for name, part in (("policy requests", self.parts.policy), ("valid", self.parts.valid))
        }
        for name, found in quality.items():
            numbers = [found["click"][measure] for measure in ("auc", "gauc", "error")]
            log.info("prefer: reward model on %s: click AUC %.4f GAUC %.4f, calibration error %.4f", name, *numbers)
        before = self.measure("valid")
        school = School(
            self.policy, self.collator, self.parts.policy, self.levels, self.rates, self.features, model, settings,
            self.evidence.facts.category, np.log1p(self.evidence.counts), self.fused_teacher(),
        )  # fmt: skip
        work = job.folder / f".{TARGET}-{self.key}"
        curves = learn(school, work, self.key, job.config.seed)
        after = self.measure("valid")
        verdict = decide(before, after, settings, job.config.seed, job.config.evaluation.bootstrap)
        if verdict.kept:
            self._keep()
        log.info("prefer: %s: %s", "kept" if verdict.kept else "REFUSED", "; ".join(verdict.reasons))
        with atomic_folder(job.folder / TARGET, PREFERENCE_KIND, self.key, {"kept": verdict.kept}) as folder:
            save_file(
                {name: value.contiguous().cpu() for name, value in model.state_dict().items()},
                folder / "reward_model.safetensors",
            )
            report = {
                "guard": verdict.to_dict(), "base": str(self.base.name), "reward_model": quality, "curves": curves, "config": to_dict(settings),
                "levels": dict(zip(self.levels.chain, self.levels.weights.tolist(), strict=True)), "seed": job.config.seed,
                "requests": {name: len(getattr(self.parts, name)) for name in ("reward", "policy", "valid")},
                "until": int(self.parts.policy.times.max(initial=0)),
            }  # fmt: skip
            write_json(folder / "report.json", report)
            (folder / "report.md").write_text(self._page(verdict, quality))
        shutil.rmtree(work, ignore_errors=True)
        return verdict

    # --- the parts ---------------------------------------------------------------------------------------------------------

    def reward_data(self, part: Feedback, seed: int) -> RewardData:
        """Features and stages of the rows of a part. A log without impressions gets invented rows: items that were not chosen (stage -1)."""
        items, stages = with_invented(part, self.job.dataset.n_items, seed)
        order = torch.arange(len(part))

        def pieces():
            for rows, asked in chunks(
                self.policy, self.collator, part.requests, _CHUNK, part.users, bool((part.split == TRAIN).all())
            ):
                width = int((items[rows] >= 0).sum(1).max())
                ids = torch.from_numpy(items[rows, :width]).to(asked.device)
                here = torch.from_numpy(np.where(items[rows, :width] < 0, -2, stages[rows, :width]))
                yield (
                    self.features(asked.requests, asked.users, asked.batch, ids, asked.state).cpu(),
                    here,
                    order[torch.from_numpy(rows)],
                )

        return RewardData.join(pieces())

    def judge_quality(self, model: RewardModel, part: Feedback) -> dict:
        """AUC, GAUC by request's user, calibration of each tower on a part that the model was not fitted on."""
        if not len(part):
            return {
                name: {"auc": float("nan"), "gauc": float("nan"), "error": float("nan"), "curve": []} for name in TOWERS
            }
        data = self.reward_data(part, self.job.config.seed + 1)
        judged = model.judge(data.features)
        stages, users = data.stages.numpy(), part.users[data.request.numpy()]
        clicked, ordered = stages >= self.levels.click, stages >= self.levels.order
        result = {}
        for name, happened, rows in (
            ("click", clicked, slice(None)),
            ("next", ordered, clicked),
            ("both", ordered, slice(None)),
        ):
            chance = getattr(judged, name).numpy()[rows]
            curve = calibration(chance, happened[rows]) if len(chance) else []
            by_user = gauc(chance, happened[rows], users[rows])
            result[name] = {
                "auc": auc(chance, happened[rows]),
                "gauc": by_user,
                "error": expected_calibration_error(curve),
                "curve": curve,
            }
        return result

    def measure(self, split: str) -> Measured:
        """The guard's measures on a split, with the policy as it is now."""
        data, most = self.job.dataset, self.job.config.training.valid_requests
        tasks = {"": data.requests(split)} | {f"{kind} search": data.requests(split, kind) for kind in data.query_kinds}
        tasks = {task: some(requests, most, self.job.config.seed) for task, requests in tasks.items() if len(requests)}
        collator = Collator(self.fitted.model, QueryFeatures.build(data.query_texts, self.job.ids.encoder))
        shown = getattr(self.parts, split)
        return measure(
            self.policy, collator, tasks, shown, self.levels, self.rates, self.job.config.decoding.beam, self.collator
        )

    def fused_teacher(self):
        """Candidates and fused scores for any of the policy's requests, where ``preference.teacher`` asks for them: evidence counted before."""
        if self.settings.teacher != "fused" or "distil" not in self.settings.phases:
            return None
        run, requests = self.job, self.parts.policy.requests
        rerankers = run.ranker("train").rerankers
        generator = CandidateGenerator(self.policy.network, self.evidence, run.config.decoding, run.lexical)
        ranker = Ranker(generator, self.fitted.model, run.ids.encoder, run.config.decoding, rerankers)
        ids, scores = ranker.rank(requests, SearchOptions(_TAUGHT))["fused"]
        ids, scores = (
            torch.from_numpy(ids),
            torch.from_numpy(np.where(ids == MISSING, -30.0, scores).astype(np.float32)),
        )
        device = self.policy.items.device
        return lambda rows: (ids[rows].to(device), scores[rows].to(device))

    # --- what is written ---------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """The new decoder as a model folder, like any other."""
        network = self.policy.network
        info = dict(open_artifact(self.base, MODEL_KIND)["info"]) | {"preferred": self.key, "ids": self.job.ids.key}
        with atomic_folder(self.job.folder / MODEL, MODEL_KIND, self.key, info) as folder:
            save_file(
                {name: value.contiguous().cpu() for name, value in network.state_dict().items()},
                folder / "model.safetensors",
            )
            for name, config in (("config.json", self.job.config), (RESOLVED, self.fitted)):
                write_json(folder / name, to_dict(config))

    def _page(self, verdict: GateDecision, quality: dict) -> str:
        lines = [
            f"# Preference stage: {'kept' if verdict.kept else 'refused'}",
            "",
            *(f"- {reason}" for reason in verdict.reasons),
            "",
            markdown(verdict),
        ]
        lines += ["| reward model | tower | AUC | GAUC | calibration error |", "|---|---|---|---|---|"]
        rows = [(part, name, row) for part, towers in quality.items() for name, row in towers.items()]
        lines += [
            f"| {part} | {name} | {row['auc']:.4f} | {row['gauc']:.4f} | {row['error']:.4f} |"
            for part, name, row in rows
        ]
        return "\n".join(lines) + "\n"


def some(requests: Requests, most: int, seed: int) -> Requests:
    """At most so many requests (0: all), drawn once and for all."""
    if not most or len(requests) <= most:
        return requests
    return requests.take(np.sort(np.random.default_rng(seed).permutation(len(requests))[:most]))


def impression_rates(train: Feedback, levels: Levels, brands: np.ndarray, categories: np.ndarray) -> FeedbackRates:
    """What became of everything shown in training, to be looked up as of any time: only rows strictly before it are counted."""
    rows = train.owner
    table = pl.DataFrame({"user": train.users[rows], "item": train.items, "timestamp": train.times[rows]})
    reached = np.stack([train.stages >= levels.click, train.stages >= levels.order], axis=1)
    return FeedbackRates(table, brands, categories, reached, int(train.times.max(initial=0)) + 1)


def deal(feedback: Feedback, settings: PreferenceConfig, seed: int, valid_limit: int) -> Parts:
    """Training requests by time, and the held-out ones. ``UserError`` where a part would be empty."""
    train = np.flatnonzero((feedback.split == TRAIN) & (feedback.history_lengths > 0))
    times = feedback.times[train]
    since = seconds_of(settings.since, "preference.since")
    if since is None:
        bounds = (
            np.array([settings.evidence_share, settings.evidence_share + settings.reward_share]) * len(train)
        ).astype(int)
        cuts = [int(times[min(bound, len(times) - 1)]) for bound in bounds] if len(times) else [0, 0]
    else:
        earlier = times[times < since]
        share = settings.evidence_share / (settings.evidence_share + settings.reward_share)
        cuts = [int(earlier[int(share * len(earlier))]) if len(earlier) else since, since]
    reward, policy = train[(times >= cuts[0]) & (times < cuts[1])], train[times >= cuts[1]]
    for name, part in (("the reward model", reward), ("the policy", policy)):
        if not len(part):
            raise UserError(
                f"preference: no training request is left for {name}; change preference.since, evidence_share or reward_share"
            )
    most = settings.max_requests
    held = {}
    for name, split in (("valid", VALID), ("test", TEST)):
        rows = np.flatnonzero((feedback.split == split) & (feedback.history_lengths > 0))
        if valid_limit and len(rows) > valid_limit:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:valid_limit])
        held[name] = feedback.take(rows)
    return Parts(feedback.take(reward[-most:]), feedback.take(policy[-most:]), held["valid"], held["test"], cuts[0])


def with_invented(part: Feedback, n_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and stages (N, K) of a part's rows; without impressions also ``_INVENTED`` random others a request, stage -1."""
    items, stages = part.padded()
    if part.observed:
        return items, stages
    others = np.random.default_rng([seed, 7]).integers(0, n_items, (len(part), _INVENTED))
    others = np.where((others[:, :, None] == items[:, None, :]).any(2), -1, others)
    order = np.argsort(others < 0, axis=1, kind="stable")
    return np.concatenate([items, np.take_along_axis(others, order, 1)], axis=1), np.concatenate(
        [stages, np.full(others.shape, -1)], axis=1
    )
