"""The tables and the figure of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genrec.artifacts.folders import write_json
from genrec.evaluation.figures import Bar, grouped_bars
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test

METRICS = ("recall@10", "ndcg@10")
MODES = {"retrieve": "retrieval", "generate": "generation", "rank": "ranking head"}
SweepResults = dict[
    str, dict[int, dict[str, np.ndarray]]
]  # row -> seed -> "task|mode|metric" -> a value for each request


def write_tables(folder: Path, name: str, split: str, results: SweepResults) -> None:
    """Write the tables of the rows so far.

    Seeds are averaged request by request. Differences to the first row are paired on the seeds that both rows have.
    """
    reference = next(iter(results))
    done = {row: seeds for row, seeds in results.items() if seeds}
    keys = list(
        dict.fromkeys(
            key.rsplit("|", 1)[0]
            for seeds in done.values()
            for one in seeds.values()
            for key in one
            if key.count("|") == 2
        )
    )
    lines = [f"# {name}", ""]
    report: list[dict[str, Any]] = []
    bars: dict[str, list[Bar]] = {}
    for key in keys:
        task, mode = key.split("|")
        lines += [f"**{task if task == 'recommendation' else f'search ({task})'}, {MODES[mode]}** ({split})", ""]
        lines += [
            f"| row | Recall@10 | nDCG@10 | Recall@10 minus {reference} | seeds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row, seeds in done.items():
            entry = _row(row, key, seeds, results[reference], reference)
            if entry is None:
                continue
            recall, (low, high), gain = entry["recall@10"], entry["interval"], entry.get("difference")
            change = "" if gain is None else difference_text(*gain)
            cells = (row, f"{recall:.4f} [{low:.4f}, {high:.4f}]", f"{entry['ndcg@10']:.4f}", change, entry["seeds"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
            report.append(entry)
            bars.setdefault(f"{task}, {MODES[mode]}", []).append(Bar(row, recall, low, high))
        lines.append("")
    areas = _areas(done, reference)
    if areas:
        lines += [*_area_lines(areas, split, reference), ""]
    lines.append(
        "Brackets: 95 % bootstrap over requests, means over finished seeds. Differences: paired by request or user."
    )
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "sweep.json", {"split": split, "rows": report, "impressions": areas})
    whole = {name: series for name, series in bars.items() if len(series) == len(done)}
    if whole:
        grouped_bars(folder / "sweep.png", whole, name, f"{split} recall@10")


def _row(row: str, key: str, seeds: dict, reference: dict, reference_name: str) -> dict[str, Any] | None:
    having = [seed for seed, one in seeds.items() if f"{key}|recall@10" in one]
    if not having:
        return None
    values = {name: np.mean([seeds[seed][f"{key}|{name}"] for seed in having], axis=0) for name in METRICS}
    entry: dict[str, Any] = {
        "row": row,
        "of": key,
        "seeds": len(having),
        **{name: float(value.mean()) for name, value in values.items()},
    }
    entry["interval"] = bootstrap_interval(values["recall@10"], 0)
    shared = [seed for seed in having if f"{key}|recall@10" in reference.get(seed, {})]
    if row != reference_name and shared:
        mine, theirs = (
            np.mean([one[seed][f"{key}|recall@10"] for seed in shared], axis=0) for one in (seeds, reference)
        )
        entry["difference"] = paired_test(mine, theirs, 0)
    return entry


def _areas(done: dict[str, dict[int, dict[str, np.ndarray]]], reference: str) -> list[dict[str, Any]]:
    """AUC and GAUC of impressions for each row with a ranking head: means over seeds, differences to the reference."""
    rows = []
    for row, seeds in done.items():
        names = sorted({key for one in seeds.values() for key in one if key.startswith("impressions|")})
        for name in names:
            having = [seed for seed in seeds if name in seeds[seed]]
            entry = {
                "row": row,
                "of": name.partition("|")[2],
                "seeds": len(having),
                "value": float(np.mean([seeds[seed][name][0] for seed in having])),
            }
            shared = [seed for seed in having if name in done.get(reference, {}).get(seed, {})]
            if row != reference and shared:
                gain = np.mean([seeds[seed][name] - done[reference][seed][name] for seed in shared], axis=0)
                entry["difference"] = [float(gain[0]), *np.nanquantile(gain[1:], [0.025, 0.975]).tolist()]
            rows.append(entry)
    return rows


def _area_text(entry: dict[str, Any]) -> str:
    gain = entry.get("difference")
    change = "" if gain is None else f" ({gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}])"
    return f"{entry['value']:.4f}{change}"


def _area_lines(areas: list[dict[str, Any]], split: str, reference: str) -> list[str]:
    names = list(dict.fromkeys(entry["of"] for entry in areas))
    cells = {(entry["row"], entry["of"]): entry for entry in areas}
    lines = [
        f"**impressions, ranking head** ({split}); brackets: minus {reference}",
        "",
        "| row | " + " | ".join(names) + " | seeds |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for row in dict.fromkeys(entry["row"] for entry in areas):
        texts = []
        for name in names:
            entry = cells.get((row, name))  # a row may learn other stages
            texts.append("–" if entry is None else _area_text(entry))
        lines.append(
            f"| {row} | " + " | ".join(texts) + f" | {max(entry['seeds'] for entry in areas if entry['row'] == row)} |"
        )
    return lines
