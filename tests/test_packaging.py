"""The wheel holds what a user without the repository needs: every module, the configs, the demo page."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_modules_configs_and_the_example(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("genrec", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(tree), *options], check=True, timeout=200)
    with zipfile.ZipFile(next(tmp_path.glob("genrec-*.whl"))) as wheel:
        held = set(wheel.namelist())
        metadata = wheel.read(next(name for name in held if name.endswith("METADATA"))).decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "genrec").rglob("*.py")}
    assert not modules - held
    assert "genrec/serving/page/index.html" in held and "genrec/data/simulator/sample.py" in held
    configs = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert all(any(name.endswith(f"share/genrec/{config}") for name in held) for config in configs)
    extras = {line.removeprefix("Provides-Extra: ") for line in metadata.splitlines() if line.startswith("Provides-")}
    assert {"serve", "excel", "tune", "stack", "redis", "ray", "minilm"} <= extras
