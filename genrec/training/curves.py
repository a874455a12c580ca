"""The picture of a training: one panel for each logged number."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from genrec.drawing import Theme, plain, save_figure

COLUMNS = 3
GROUPS = {"train/": "training", "val/": "validation"}


def plot_curves(curves: list[dict], path: Path) -> None:
    """Draw the logged rows (one dict per logged step), each number in a panel of its own, as PNG and SVG.

    Numbers that never change, or repeat another one, are left out: they say nothing of the training.
    """
    points = varying(curves)
    height = -(-max(len(points), 1) // COLUMNS)
    save_figure(path, (3.1 * min(COLUMNS, max(len(points), 1)) + 0.2, 2.0 * height), lambda *to: _draw(points, *to))


def varying(curves: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of every logged number that changes and equals no other one, losses first."""
    names = sorted({name for row in curves for name, value in row.items() if value is not None})
    points: dict[str, list[tuple[int, float]]] = {}
    for name in (name for group in GROUPS for name in names if name.startswith(group)):
        line = [(row["step"], row[name]) for row in curves if row.get(name) is not None]
        if len({value for _, value in line}) > 1 and line not in points.values():
            points[name] = line
    return points


def _draw(points: dict[str, list[tuple[int, float]]], figure: Figure, theme: Theme) -> None:
    for index, (name, line) in enumerate(points.items()):
        axes = figure.add_subplot(-(-len(points) // COLUMNS), min(COLUMNS, len(points)), index + 1)
        group = next(group for group in GROUPS if name.startswith(group))
        colour = theme.series[list(GROUPS).index(group)]
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.4, marker="o" if len(line) < 20 else None, ms=3)
        axes.set_title(f"{GROUPS[group]}: {name.removeprefix(group).replace('_', ' ')}", fontsize=8)
        axes.tick_params(labelsize=7)
        plain(axes, "both")
        if index >= len(points) - COLUMNS:
            axes.set_xlabel("step", fontsize=8)
    if not points:
        figure.text(0.5, 0.5, "nothing was logged that changes", ha="center")
