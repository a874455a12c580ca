"""What each phase of the preference stage is worth: one trained run, one reward model, the same decoder before every
row.

    python scripts/bench/prefer.py RUN [--rows 'rerank|distil|grpo|...'] [--seeds 2] [--output rows.json]
    [preference.key=value ...]
    python scripts/bench/prefer.py RUN --days 10 [--seeds 3] [--visits 0.25] [--share 0.1] [--repeats] [--output FOLDER]

The second form lets policies serve simulated days in a closed loop: see ``prefer_days.py``.

Rows are separated by |; ``none``, the decoder as it was, always comes first. A row is one or more phases joined by +,
with settings in brackets: ``grpo[epochs=2;learning_rate=0.001]``. ``rerank`` only lets the reward model
order the decoder's own beam, ``rerank[strength=2]`` the decoder's probability times that power of the value. Every row shows validation (what choices may look at) and, with ``--test``, test; on a run
of the simulator also the
true expected clicks and purchases per list, which nobody but the simulator knows.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from prefer_days import run_days

from genrec.config.load import with_overrides
from genrec.config.schema import Config
from genrec.data.simulator.sessions import EPOCH
from genrec.data.simulator.simulate import make_world
from genrec.data.simulator.value import list_value
from genrec.data.simulator.world import SimulatorConfig, numbers_of
from genrec.evaluation.metrics import coverage, paired_test, per_request_metrics
from genrec.preference.acceptance import Measured, decide
from genrec.preference.parts import draw_requests, drawn_rows
from genrec.preference.phases import regularised
from genrec.preference.policy import chunks
from genrec.preference.reward_model import fit_reward_model
from genrec.preference.stage import Stage
from genrec.preference.training import learn
from genrec.runs.run import Run

log = logging.getLogger("bench")
ROWS = "rerank|taste[strengths=[1]]|taste[strengths=[2]]|distil|grpo|plackett-luce|dpo"


class Bench:
    """A run's stage with its reward model fitted once."""

    def __init__(self, run: Run, test: bool, output: Path | None, most: int = 0):
        self.run, self.output, self.splits = run, output, ("valid", "test") if test else ("valid",)
        self.stage = Stage(run, "bench")
        if most:
            parts = self.stage.parts
            self.stage.parts = replace(
                parts, policy=parts.policy.take(np.arange(max(0, len(parts.policy) - most), len(parts.policy)))
            )
        self.start = {name: value.clone() for name, value in self.stage.policy.decoder.state_dict().items()}
        self.model = fit_reward_model(
            self.stage.reward_data(self.stage.parts.reward, run.config.seed),
            self.stage.levels.click,
            self.stage.levels.order,
            run.config.seed,
        )
        self.quality = {
            name: self.stage.reward_quality(self.model, getattr(self.stage.parts, name)) for name in ("policy", "valid")
        }
        for name, towers in self.quality.items():
            log.info(
                "reward model on %s: %s",
                name,
                {
                    tower: {key: round(found[key], 4) for key in ("auc", "gauc", "error")}
                    for tower, found in towers.items()
                },
            )
        options = run.config.data.options
        self.world = make_world(SimulatorConfig(**options)) if run.config.data.reader == "simulator" else None
        self.days = SimulatorConfig(**options).days if self.world else 0
        self.before: dict[str, Measured] = {}
        self.rows: list[dict] = []

    def restore(self) -> None:
        self.stage.set_taste(None)
        self.stage.policy.decoder.load_state_dict(self.start)
        self.stage.policy.version += 1

    def row(self, text: str, seed: int) -> None:
        """Measure one row; ``text`` as the module's docstring has it."""
        name, _, extra = text.partition("[")
        given = [one for one in extra.removesuffix("]").split(";") if one]
        strength = None
        if name == "rerank":
            strength, given = (float(given[0].removeprefix("strength=")) if given else None), []
        settings = with_overrides(
            Config(preference=self.run.config.preference), [f"preference.{one}" for one in given]
        ).preference
        self.restore()
        begin = time.perf_counter()
        if name not in ("none", "rerank"):
            settings.phases = name.split("+")
            stage = self.stage
            stage.settings = settings
            trainer = stage.trainer(self.model, settings.strengths[0])
            with tempfile.TemporaryDirectory() as work:  # a checkpoint of one row must not be another's beginning
                learn(trainer, Path(work) / "preference", "bench", seed, self.run.config.training)
            stage.set_taste(settings.strengths[0])
        found = {
            split: self.rerank(split, strength) if name == "rerank" else self.measure(split) for split in self.splits
        }
        if name == "none":
            self.before = found
        result = {"row": text, "seed": seed, "seconds": round(time.perf_counter() - begin, 1)}
        for split, one in found.items():
            result[split] = {key: round(value, 5) for key, value in one.means().items()}
            if self.before and name != "none":
                paired = {}
                for key, values in one.paired.items():
                    old = self.before[split].paired.get(key, np.full(len(values), np.nan))
                    both = np.isfinite(values) & np.isfinite(old)
                    if both.any():
                        paired[key] = [round(x, 5) for x in paired_test(values[both], old[both], 0)]
                result[f"{split} minus none"] = paired
        if name not in ("none", "rerank"):
            decision = decide(self.before["valid"], found["valid"], settings.tolerance, 0)
            result["kept"], result["reasons"] = decision.kept, decision.reasons
        self.rows.append(result)
        log.info("%s", json.dumps(result))
        if self.output:
            self.output.write_text(json.dumps({"reward_model": self.quality, "rows": self.rows}, indent=1))

    def measure(self, split: str) -> Measured:
        found = self.stage.measure(split)
        return self.with_truth(split, found)

    def rerank(self, split: str, strength: float | None) -> Measured:
        """The decoder's beam in the order of the value, or of the probability times ``value ** strength``."""
        requests = self.requests(split)
        lists = np.full((len(requests), 10), -1, np.int64)
        policy, stage = self.stage.policy, self.stage
        for rows, inputs in chunks(policy, stage.collator, requests, 128, self.owners(split)):
            ids, chances = policy.beam(inputs, self.run.config.decoding.beam)
            values = self.model.predict(stage.features(inputs.requests, inputs.users, inputs.batch, ids, inputs.state))
            worth = self.model.reward(values, stage.settings.reward)
            worth = (worth if strength is None else regularised(chances, worth, strength)).masked_fill(
                ids < 0, -torch.inf
            )
            best = ids.gather(1, worth.argsort(dim=1, descending=True, stable=True))[:, :10]
            lists[rows, : best.shape[1]] = best.cpu().numpy()
        metrics = per_request_metrics(lists, requests.targets, [10])
        paired = {name: metrics[f"{name}@10"] for name in ("recall", "ndcg")}
        found = Measured(lists, paired, {"coverage": coverage(lists, policy.trie.n_items)})
        return self.with_truth(split, found.weighted(stage.exposure_weights(split)))

    def requests(self, split: str):
        """As ``Stage.measure`` takes them, texts of the feedback's queries."""
        return draw_requests(
            self.run.dataset.requests(split), self.run.config.training.valid_requests, self.run.config.seed
        )

    def owners(self, split: str) -> np.ndarray:
        """The user of each of ``requests``."""
        data, limit = self.run.dataset, self.run.config.training.valid_requests
        owner = np.searchsorted(data.offsets, data.heldout_events(split), side="right") - 1
        return owner[drawn_rows(len(owner), limit, self.run.config.seed)]

    def with_truth(self, split: str, found: Measured) -> Measured:
        if self.world is None:
            return found
        data, requests = self.run.dataset, self.requests(split)
        items = numbers_of(data.item_table["item_id"], len(self.world.item_leaf), "i")
        owner = self.owners(split)
        users = numbers_of(data.user_ids, len(self.world.user_cluster), "u")[owner]
        when = np.clip((requests.times - EPOCH) / (self.days * 86_400), 0, 1)
        previous = np.where(
            np.diff(requests.offsets) > 0, items[requests.items[np.maximum(requests.offsets[1:] - 1, 0)]], -1
        )
        value = list_value(
            self.world, users, when, previous, np.where(found.lists >= 0, items[np.maximum(found.lists, 0)], -1)
        )
        found.paired |= {"true clicks": value.clicks, "true purchases": value.purchases}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true")
    parser.add_argument(
        "--policy-requests", type=int, default=0, help="the newest so many teach the policy; 0: preference.max_requests"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--days", type=int, default=0)
    parser.add_argument("--visits", type=float, default=0.25, help="mean visits of a person and day")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--repeats", action="store_true", help="days: lists may hold what a person has had")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("genrec.preference.training").setLevel(logging.INFO)
    torch.set_flush_denormal(True)
    if arguments.days:
        out = arguments.output or arguments.run.with_name(arguments.run.name + ".days")
        shape = arguments.days, arguments.seeds, arguments.visits, arguments.share, arguments.repeats
        run_days(arguments.run, out, *shape, arguments.overrides)
        return
    bench = Bench(
        Run.open(arguments.run, arguments.overrides), arguments.test, arguments.output, arguments.policy_requests
    )
    for text in ["none", *(row for row in arguments.rows.split("|") if row != "none")]:
        for seed in range(1 if text in ("none", "rerank") else arguments.seeds):
            bench.row(text, seed)


if __name__ == "__main__":
    main()
