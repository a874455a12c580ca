"""The scripts that make tables of README run from their command line, in miniature."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_joint_against_separate(tmp_path, tiny_overrides, monkeypatch, capsys):
    config = SCRIPTS.parent / "configs" / "simulator.yaml"
    overrides = tiny_overrides(
        tmp_path,
        "data.options.n_users=60",
        "training.epochs=1",
        "training.decoder_epochs=1",
        "training.valid_requests=50",
    )
    monkeypatch.setattr(sys, "argv", ["joint", str(config), *overrides, "--arms", "joint", "search", "recommendation"])
    runpy.run_path(str(SCRIPTS / "joint_against_separate.py"), run_name="__main__")
    (written,) = tmp_path.rglob("*-arms.json")
    rows = json.loads(written.read_text())["rows"]
    assert {(row["task"], row["arm"]) for row in rows} == {
        ("recommendation", "joint"), ("recommendation", "recommendation"), ("logged", "joint"), ("logged", "search"),
    }  # fmt: skip
    assert {row["mode"] for row in rows} == {"fused", "retrieve", "generate"}
    assert "recall@10 minus joint" in rows[-1] and "| arm |" in capsys.readouterr().out


@pytest.mark.parametrize("sampling", ["packed", "single"])
def test_sampling(prepared_run, monkeypatch, capsys, sampling):
    how = ["--sampling", sampling, "--epochs", "2", "--dim", "8", "--dropout", "0.1", "--rate", "0.01", "--test"]
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["sampling", str(prepared_run.folder), *how])
    try:
        runpy.run_path(str(SCRIPTS / "bench" / "sampling.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines[:2]]
    assert losses[1] < losses[0] and lines[2].startswith("test 0.")


def test_growth_with_the_catalogue_is_per_tenfold():
    module = runpy.run_path(str(SCRIPTS / "bench" / "scale.py"), run_name="scale")
    assert module["growth"]({1_000: 2.0, 100_000: 8.0}) == "2.00" and module["growth"]({1_000: 2.0}) == ""
    written = module["table"]({1_000: {"load s": 2.0}, 10_000: {"load s": 3.0, "bundle GB": 0.5}}).splitlines()
    assert written[0] == "| | 1,000 | 10,000 | per tenfold |"
    assert written[2:] == ["| load s | 2 | 3 | 1.50 |", "| bundle GB |  | 0.5 |  |"]


def test_the_tour_is_the_best_path():
    module = runpy.run_path(str(SCRIPTS / "bench" / "rank_strategies.py"), run_name="rank_strategies")
    odds = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    steps = torch.nn.functional.logsigmoid(odds)
    for row, path in enumerate(module["tour"](odds).tolist()):
        values = {order: sum(float(steps[row, i, j]) for i, j in pairwise(order)) for order in permutations(range(5))}
        assert tuple(path) == max(values, key=values.get)
