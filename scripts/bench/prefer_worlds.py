"""The preference stage in several simulated worlds, with and without exploration in the log.

    python scripts/bench/prefer_worlds.py OUT [--worlds 3] [preference.key=value ...]

Each world (its own catalogue, people and log) gets a supervised run below OUT, one of a log that fills a fifth of the
slots at random and states propensities, and one of a log that shows what its policy chose and states nothing. Runs that OUT holds are
kept. The stage then runs as ``genrec prefer`` does: its gate and its strength are decided on validation. Test is read
with the decoder as it was, as the stage left it, and, so that a refusal can be judged, at every strength.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from prefer import Bench

from genrec.data.schema import PROPENSITY
from genrec.evaluation.metrics import paired_test
from genrec.pipeline.stages import fit_network, stage_tokenize
from genrec.preference.acceptance import Measured
from genrec.runs.run import Run

log = logging.getLogger("bench")
CONFIG = Path(__file__).parents[2] / "configs" / "simulator.yaml"
LOGS = {"exploring": 0.2, "plain": 0.0}
SIZE = {"n_users": 5000, "n_items": 1000, "n_events": 120_000}
SETTINGS = (
    "evaluation.baselines=[]", "training.refit=false", "training.epochs=3", "training.decoder_epochs=2",
    "preference.phases=[taste]", "preference.strengths=[1,2,3]", "preference.max_requests=8000",
)  # fmt: skip
MEASURES = ("true purchases", "recall", "ndcg", "exposure-weighted recall")


def run_worlds(out: Path, worlds: int, overrides: list[str]) -> None:
    """Train what is missing, run the stage in every world, and write ``worlds.json`` and the tables to ``out``."""
    saved = out / "worlds.json"
    rows = json.loads(saved.read_text()) if saved.is_file() else []
    for seed in range(worlds):
        for kind, share in LOGS.items():
            if any(row["seed"] == seed and row["log"] == kind for row in rows):
                continue
            options = SIZE | {"exploration": share, "seed": seed}
            named = [f"output={out}", f"name=seed-{seed}-{kind}", f"seed={42 + seed}"]
            run = Run.create(CONFIG, [*named, f"data.options={json.dumps(options)}", *SETTINGS, *overrides])
            stage_tokenize(run)
            fit_network(run)
            if not share:  # a policy that does not explore does not say how likely its choices were either
                vars(run.dataset)["impressions"] = run.dataset.impressions.drop(PROPENSITY)
            rows.append({"seed": seed, "log": kind} | stage_row(run))
            log.info("%s", {key: value for key, value in rows[-1].items() if key != "values"})
            saved.write_text(json.dumps(rows))
    print(tables(rows))


def stage_row(run: Run) -> dict:
    """What the stage decided in one world, and the measures on test behind it."""
    bench = Bench(run, True, None)
    stage = bench.stage
    before = bench.measure("test")
    decision, _, frontier = stage.best_policy(bench.model)
    taste = stage.policy.network.taste
    strength = 0.0 if taste is None else float(taste.strength)
    values = {"none": _values(before)}
    for row in frontier:
        stage.set_taste(row["strength"])
        values[f"{row['strength']:g}"] = _values(bench.measure("test"))
    for row in frontier:
        row.pop("beam", None)
    return {
        "kept": decision.kept,
        "reasons": decision.reasons,
        "strength": strength,
        "frontier": frontier,
        "values": values,
    }


def _values(measured: Measured) -> dict[str, list[float]]:
    """Values of each list; the weighted ones of those whose target's propensity the log states."""
    found = {name: measured.paired[name] for name in MEASURES if name in measured.paired}
    return {name: np.round(values[np.isfinite(values)], 6).tolist() for name, values in found.items()}


def tables(rows: list[dict]) -> str:
    """What the stage left in each world and over all of them, and what each strength would have done."""
    lines = []
    for kind in LOGS:
        mine = [row for row in rows if row["log"] == kind]
        if not mine:
            continue
        left = [row["values"][f"{row['strength']:g}" if row["kept"] else "none"] for row in mine]
        lines += [f"Log: {kind}", "", "| world | stage | " + " | ".join(MEASURES) + " |", "|---|---|---|---|---|---|"]
        for row, after in zip(mine, left, strict=True):
            stage = f"kept, strength {row['strength']:g}" if row["kept"] else "refused: " + "; ".join(row["reasons"])
            lines.append(f"| {row['seed']} | {stage} | {_cells([row['values']['none']], [after])} |")
        before = [row["values"]["none"] for row in mine]
        lines.append(f"| all | | {_cells(before, left)} |")
        for strength in sorted({name for row in mine for name in row["values"]} - {"none"}):
            after = [row["values"][strength] for row in mine]
            lines.append(f"| all | strength {strength}, whatever the gate says | {_cells(before, after)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(before: list[dict], after: list[dict]) -> str:
    """Mean before and after, the relative difference and its paired interval, of each measure."""
    cells = []
    for name in MEASURES:
        if name not in before[0]:
            cells.append("")
            continue
        old, new = (np.concatenate([np.array(one[name]) for one in part]) for part in (before, after))
        base, (difference, low, high, _) = old.mean(), paired_test(new, old, 0)
        relative = [f"{100 * value / base:+.1f}" for value in (difference, low, high)]
        cells.append(f"{base:.4f} to {new.mean():.4f}, {relative[0]} % [{relative[1]}, {relative[2]}]")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--worlds", type=int, default=3)
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_flush_denormal(True)
    run_worlds(arguments.output, arguments.worlds, arguments.overrides)


if __name__ == "__main__":
    main()
