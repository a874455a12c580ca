"""Runs side by side: the kept metrics are those of the table, pairing is by request, and what cannot be compared is
refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.evaluation.compare import Answers, compare, write_per_request

FUSED, OTHER = "genrec, fused", "ItemKNN"


def made(folder, fused, other, fingerprint="same"):
    """A run of which nothing is left but two rows' Recall@10 (nDCG@10: half of it)."""
    (folder / "results").mkdir(parents=True)
    rows = {(FUSED, "train", None): fused, (OTHER, "train", None): other}
    values = {
        key: {"recall@10": np.array(one, float), "ndcg@10": np.array(one, float) / 2} for key, one in rows.items()
    }
    write_per_request(folder / "results", values, {None: fingerprint})
    return folder


def row(table: str, model: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {model} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_kept_metrics_are_those_of_the_table(trained_run):
    answers = Answers.read(trained_run.folder, "test")
    rows = json.loads((trained_run.folder / "results" / "metrics.json").read_text())["rows"]
    assert len(rows) == len(answers.values) and len({row["fitted_on"] for row in rows}) == 2
    for one in rows:
        kept = answers.values[one["query_kind"] or "recommendation", one["fitted_on"], one["model"]]
        for name, values in kept.items():
            assert float(values.mean()) == pytest.approx(one["metrics"][name], abs=1e-6)
    assert any("raw_recall@10" in kept for kept in answers.values.values())


def test_a_run_beside_itself_differs_by_nothing(trained_run, genrec, tmp_path):
    code, out, err = genrec(
        "compare", trained_run.folder, trained_run.folder, "--output", tmp_path / "new" / "table.md"
    )
    assert code == 0, err
    table = (tmp_path / "new" / "table.md").read_text()
    assert (
        "+0.0000 [+0.0000, +0.0000], p = 1.000" in table
        and "refitted on train+valid" in table
        and "search (logged)" in table
    )
    assert FUSED in out


def test_against_the_first_by_hand(tmp_path, results_alone):
    one = made(tmp_path / "one", [1, 0, 0, 0], [0, 0, 0, 0])
    two = made(tmp_path / "two", [1, 1, 1, 0], [0, 0, 0, 1])
    cells = row(compare([one, two]), FUSED)
    assert cells[1:3] == ["0.2500 / 0.1250", "0.7500 / 0.3750"] and cells[3].startswith("+0.5000 [")


def test_seeds_are_pooled_by_request(tmp_path, results_alone):
    one = made(tmp_path / "one", [1, 0, 1, 0], [0, 0, 0, 0])
    two = made(tmp_path / "two", [1, 0, 0, 0], [0, 0, 0, 1])
    table = compare([one, two], pooled=True)
    fused, other = row(table, FUSED), row(table, OTHER)
    assert fused[1].startswith("0.3750 [") and fused[2] == f"{np.std([0.5, 0.25], ddof=1):.4f}" and fused[-1] == "2"
    assert other[1].startswith("0.1250 [") and other[6].startswith("+0.2500 [") and fused[6] == ""


def test_a_run_that_was_not_asked_keeps_its_column(tmp_path, results_alone):
    """One that learnt no search is the first of the two, and the only figures are those of the second."""
    one, two = made(tmp_path / "one", [1, 0], [0, 1]), tmp_path / "two"
    (two / "results").mkdir(parents=True)
    hits = {"recall@10": np.array([1.0, 0.0]), "ndcg@10": np.array([1.0, 0.0])}
    write_per_request(two / "results", {(FUSED, "train", "title"): hits}, {"title": "others"})
    searches = compare([one, two]).partition("search (title)")[2]
    assert row(searches, FUSED)[1:] == ["–", "0.5000 / 0.5000", "–"]
    assert row(compare([one, two], pooled=True).partition("search (title)")[2], FUSED)[-1] == "1"


@pytest.mark.parametrize("pooled", [False, True])
def test_what_was_asked_otherwise_is_not_compared(tmp_path, pooled, results_alone):
    one, two = made(tmp_path / "one", [1, 0], [0, 1]), made(tmp_path / "two", [1, 0], [0, 1], "others")
    with pytest.raises(UserError, match="different requests"):
        compare([one, two], pooled=pooled)


def test_mistakes_are_named(tmp_path, trained_run):
    with pytest.raises(UserError, match="at least two"):
        compare([trained_run.folder])
    copy = shutil.copytree(trained_run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("results*"))
    with pytest.raises(UserError, match="genrec evaluate .* --split valid"):
        compare([trained_run.folder, copy], "valid")
    with pytest.raises(UserError, match="genrec evaluate .*copy --split test"):
        compare([trained_run.folder, copy])
