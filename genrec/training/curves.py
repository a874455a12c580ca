"""The picture of a training: losses by step, validation quality by step."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_curves(curves: list[dict], path: Path) -> None:
    """Draw the logged rows (one dict per logged step) to a PNG; without validation only the losses are drawn."""
    names = sorted({name for row in curves for name, value in row.items() if "/" in name and value is not None})
    panels = [group for group in ("train/", "val/") if any(name.startswith(group) for name in names)]
    figure = Figure(figsize=(6 * max(len(panels), 1), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for index, group in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name in (name for name in names if name.startswith(group)):
            points = [(row["step"], row[name]) for row in curves if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix(group))
        axes.set(
            xlabel="step", title={"train/": "training loss", "val/": "validation, already-had items removed"}[group]
        )
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
