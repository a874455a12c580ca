"""The scripts that make tables of README run from their command line, in miniature."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

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
