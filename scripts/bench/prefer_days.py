"""Simulated days of closed loop: serve, log with propensities, update the policy, serve.

    python scripts/bench/prefer.py RUN --days 10 [--seeds 3] [--visits 0.25] [--share 0.1] [--repeats]
    [--output FOLDER] [preference.key=value ...]

RUN was trained on a log of the simulator. After that log each arm answers the same visits by its own lists, and logs
what people do: ``none``, the trained policy as it is; ``greedy``, its beam in the order of a reward model that is
fitted anew each night; ``stage``, the policy as the preference stage leaves it each night where its gate accepts; and
``oracle``, the best lists by the latent truth. ``greedy`` and ``stage`` explore a share of their slots, which they pay
for. The frozen network reads the histories of the day in every arm. Lists leave out what a person has had, as served
ones do, so the best items of a small catalogue run out; with ``--repeats`` they may show it again.
"""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure

from genrec.artifacts.folders import atomic_folder, fingerprint, read_json, write_json
from genrec.data.dataset import Requests
from genrec.data.prepare.appended import SERVED_LOG, SERVED_OPTIONS
from genrec.data.prepare.pipeline import prepare
from genrec.data.simulator.simulate import make_world
from genrec.data.simulator.visits import Visits, best_lists, draw_visits, react, tables
from genrec.data.simulator.world import SimulatorConfig, World, numbers_of
from genrec.drawing import Theme, save_figure
from genrec.evaluation.metrics import paired_test
from genrec.inference.exploration import Exploration, explored
from genrec.preference.policy import chunks
from genrec.preference.reward_model import RewardModel, fit_reward_model
from genrec.preference.stage import Stage
from genrec.runs.run import Run

log = logging.getLogger("bench")
K, BEAM, ARMS = 10, 50, ("none", "stage", "oracle", "greedy")
TEMPERATURE = 2.0  # of exploration


class Arm:
    """A policy with its own log. ``none`` and ``oracle`` do not learn."""

    def __init__(
        self, name: str, base: Run, world: World, out: Path, seed: int, exploration: Exploration, repeats: bool
    ):
        self.name, self.base, self.world, self.folder, self.seed = name, base, world, out / name, seed
        self.repeats = repeats
        self.exploration = exploration
        self.learns = name in ("greedy", "stage")
        self.days: list[Path] = []
        self.leaf = last_leaves(base, world)
        self.model: RewardModel | None = None
        self.accepted = 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name in ("dataset", ".dataset.parsed", "model"):
            shutil.copytree(base.folder / name, self.folder / name)

    def night(self) -> None:
        """Read the log, and improve the policy with it."""
        config = copy.deepcopy(self.base.config)
        config.data.append = [str(day) for day in self.days]
        prepare(config, self.folder / "dataset")
        run = Run(self.folder, config)
        same = run.dataset.item_table["item_id"].equals(self.base.dataset.item_table["item_id"])
        assert same, "the catalogue must stay as it is"
        vars(run)["ids"] = self.base.ids
        self.data = run.dataset
        if self.name == "oracle":
            return
        self.stage = stage = Stage(run, "days")
        if not self.learns:
            return
        data = stage.reward_data(stage.parts.reward, self.seed)
        self.model = fit_reward_model(data, stage.levels.click, stage.levels.order, self.seed)
        if self.name == "stage":
            before = {name: value.clone() for name, value in stage.policy.decoder.state_dict().items()}
            decision, _, frontier = stage.best_policy(self.model)
            shutil.rmtree(stage.work(), ignore_errors=True)
            if not decision.kept:
                stage.policy.decoder.load_state_dict(before)
                stage.policy.version += 1
            self.accepted += decision.kept
            strengths = [row["strength"] for row in frontier if row.get("kept")]
            log.info("stage: %s, accepted strengths %s", "; ".join(decision.reasons), strengths)

    def serve(self, visits: Visits, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists (N, K) of world item numbers and propensities for visits of dataset ``users`` (N,)."""
        data, world = self.data, self.world
        numbers = numbers_of(data.item_table["item_id"], len(world.item_leaf), "i")
        offsets, none = np.asarray(data.offsets), np.full(len(users), -1, np.int64)
        requests = data.requests_at(users, offsets[users + 1], visits.times, none, none, data.query_texts)
        if self.name == "oracle":
            seen = np.zeros((len(users), len(world.item_leaf)), bool)
            seen[
                np.repeat(np.arange(len(users)), np.diff(requests.offsets)), numbers[requests.items]
            ] = not self.repeats
            leaf = self.leaf_before[visits.users]
            return best_lists(world, visits.users, visits.when, leaf, seen, K), np.full((len(users), K), np.nan)
        ids, scores = self.ordered_beams(requests, users)
        lists, propensities = np.full((len(users), K), -1, np.int64), np.full((len(users), K), np.nan)
        exploration = self.exploration if self.learns else Exploration(0.0)
        for row in range(len(users)):
            live = ids[row] >= 0
            name = f"{users[row]} {visits.times[row]}".encode()
            order, chances = explored(scores[row][live], K, exploration, name)
            lists[row, : len(order)] = numbers[ids[row][live][order]]
            propensities[row, : len(order)] = chances
        return lists, propensities

    def ordered_beams(self, requests: Requests, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The policy's beam, for ``greedy`` in the order of the reward model, and scores that explore it."""
        stage = self.stage
        all_ids, all_scores = np.full((len(users), BEAM), -1, np.int64), np.full((len(users), BEAM), -np.inf)
        for rows, inputs in chunks(stage.policy, stage.collator, requests, 256, users):
            ids, scores = (part[:, :BEAM] for part in stage.policy.beam(inputs, BEAM, not self.repeats))
            if self.name == "greedy" and self.model is not None:
                features = stage.features(inputs.requests, inputs.users, inputs.batch, ids, inputs.state)
                value = self.model.reward(self.model.predict(features), stage.settings.reward)
                scores, order = value.log().masked_fill(ids < 0, -torch.inf).sort(dim=1, descending=True, stable=True)
                ids = ids.gather(1, order)
            all_ids[rows, : ids.shape[1]], all_scores[rows, : ids.shape[1]] = ids.cpu(), scores.cpu()
        return all_ids, all_scores

    def day(self, number: int, days: int, rate: float) -> np.ndarray:
        """Serve a day and log it; the expected purchases of each visit's list."""
        data, world = self.data, self.world
        self.leaf_before = self.leaf.copy()
        visits = draw_visits(world, number, days, self.leaf, rate, self.seed)
        index = pl.Series(world.user_ids.gather(visits.users))
        known = index.replace_strict(
            self.base.dataset.user_ids, np.arange(self.base.dataset.n_users), default=-1, return_dtype=pl.Int64
        ).to_numpy()
        assert data.user_ids[: self.base.dataset.n_users].equals(self.base.dataset.user_ids)
        live = known >= 0
        visits = Visits(visits.users[live], visits.times[live], visits.when[live], visits.leaf[live])
        lists, propensities = self.serve(visits, known[live])
        stages, expected = react(world, visits, lists, self.seed)
        folder, counts = self.folder / f"day-{number}", {"visits": len(expected)}
        with atomic_folder(folder, SERVED_LOG, fingerprint(counts), counts) as made:
            day = tables(world, visits, lists, stages, propensities)
            for file, table in zip(SERVED_OPTIONS.values(), day, strict=True):
                table.write_parquet(made / file)
        self.days.append(folder)
        return expected


def last_leaves(base: Run, world: World) -> np.ndarray:
    """The category of each world user's last event in the base log; 0 where there is none."""
    data = base.dataset
    users = numbers_of(data.user_ids, len(world.user_cluster), "u")
    items = numbers_of(data.item_table["item_id"], len(world.item_leaf), "i")
    leaf = np.zeros(len(world.user_cluster), np.int64)
    leaf[users] = world.item_leaf[items[np.asarray(data.items)[np.asarray(data.offsets)[1:] - 1]]]
    return leaf


def run_days(
    run: Path, out: Path, days: int, seeds: int, rate: float, share: float, repeats: bool, overrides: list[str]
) -> None:
    """Run every seed and write ``days.json``, the table and the figure to ``out``; arms that it holds are kept."""
    base, saved = Run.open(run, overrides), out / "days.json"
    rows = read_json(saved)["rows"] if saved.is_file() else []
    complete = {(row["seed"], row["arm"]) for row in rows if row["day"] == days}
    rows = [row for row in rows if (row["seed"], row["arm"]) in complete]
    config = SimulatorConfig(**base.config.data.options)
    world, first = make_world(config), config.days
    for seed in range(seeds):
        for name in [arm for arm in ARMS if (seed, arm) not in complete]:
            arm = Arm(name, base, world, out / f"seed-{seed}", seed, Exploration(share, TEMPERATURE), repeats)
            for day in range(days):
                arm.night()
                value = arm.day(first + day, first, rate)
                rows.append({"seed": seed, "arm": name, "day": day + 1, "purchases": value.tolist()})
                log.info("seed %d %s day %d: %.4f purchases a list", seed, name, day + 1, value.mean())
                write_json(saved, {"rows": rows})
            log.info("seed %d %s: accepted in %d of %d nights", seed, name, arm.accepted, days)
            report(out, rows, days)


def report(out: Path, rows: list[dict], days: int) -> None:
    """The table of days, paired differences to ``none`` over all days, and the figure."""
    arms = [arm for arm in ARMS if any(row["arm"] == arm and row["day"] == days for row in rows)]
    mean = {(row["arm"], row["day"], row["seed"]): float(np.mean(row["purchases"])) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    curves = {arm: [np.mean([mean[arm, day, seed] for seed in seeds]) for day in range(1, days + 1)] for arm in arms}
    ratios = {arm: np.divide(curves[arm], curves["none"]) for arm in arms[1:]}
    print(
        "| day | " + " | ".join(arms + [f"{arm} / none" for arm in ratios]) + " |\n|---|" + "---|" * (2 * len(arms) - 1)
    )
    for day in range(days):
        values = [f"{curves[arm][day]:.4f}" for arm in arms] + [f"{ratio[day]:.3f}" for ratio in ratios.values()]
        print(f"| {day + 1} | " + " | ".join(values) + " |")
    every = {arm: np.concatenate([row["purchases"] for row in rows if row["arm"] == arm]) for arm in arms}
    for arm in arms[1:]:
        difference = paired_test(every[arm], every["none"], 0)
        base = every["none"].mean()
        print(arm, " ".join(f"{100 * value / base:+.1f} %" for value in difference[:3]))

    def draw(figure: Figure, theme: Theme) -> None:
        left, right = figure.subplots(1, 2)
        for colour, arm in zip(theme.series, arms, strict=False):
            left.plot(range(1, days + 1), curves[arm], color=colour, marker="o", label=arm)
            if arm in ratios and arm != "oracle":
                right.plot(range(1, days + 1), ratios[arm], color=colour, marker="o", label=f"{arm} / none")
        left.set(xlabel="day", ylabel="true purchases per list", ylim=(0, None))
        right.set(xlabel="day", ylabel="ratio to no stage")
        right.axhline(1, color=theme.series[0])
        for axes in (left, right):
            axes.grid(True, axis="y")
            axes.legend()

    save_figure(out / "days.png", (9, 3.4), draw)
