"""``scripts/bench/gpu.py`` runs end to end on a CPU with tiny shapes, and a part that fails stops no other."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", ["correctness", "decoding", "training", "retrieval"])
def test_each_part_measures_tiny_shapes(gpu, part):
    rows = list(gpu.PARTS[part]("cpu", True))
    assert rows and json.loads(json.dumps(rows)) == rows
    if part == "correctness":
        checks = {row["check"]: row for row in rows}
        assert checks["lists CPU = device"]["equal"] == checks["graph = eager"]["equal"] == 1
        assert checks["resume"]["largest gap"] == checks["training step"]["largest gradient error"] == 0


def test_the_command_goes_on_after_a_part_that_is_too_slow(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(gpu.LIMITS, "decoding", 0.01)
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--parts", "decoding", "retrieval", "--output", str(output)])
    assert gpu.main() == 1
    slow, fine = json.loads(output.read_text())["parts"]
    assert "stopped after" in slow["problem"] and not slow["rows"]
    assert fine["problem"] is None and len(fine["rows"]) == 2
    assert "retrieval: " in capsys.readouterr().out
