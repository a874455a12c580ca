"""Bar charts with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genrec.drawing import Theme, plain, save_figure
from genrec.errors import UserError


@dataclass(frozen=True)
class Bar:
    """A mean with its interval; NaN where there was nothing to average."""

    label: str
    value: float
    low: float
    high: float
    count: int | None = None  # requests behind the mean

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: null instead."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"label": self.label, "count": self.count, **finite}


def grouped_bars(path: Path, series: Mapping[str, Sequence[Bar]], title: str, measure: str = "recall") -> None:
    """Write horizontal bars with intervals: a group for each label, in it a bar for each series.

    All series hold the same labels in the same order, else ``UserError``. Counts, where given, are those of the first
    series.
    """
    first = next(iter(series.values()), ())
    if any([bar.label for bar in bars] != [bar.label for bar in first] for bars in series.values()):
        raise UserError(
            f"figure '{title}': the models have different slices; give all of them arrays for the same requests"
        )
    rows = max(1, len(first) * max(1, len(series)))
    height = 0.9 + 0.22 * rows + 0.12 * len(first) + (0.25 if len(series) > 1 else 0)
    save_figure(path, (7.2, height), lambda figure, theme: _draw(figure, theme, series, title, measure))


def _draw(figure: Figure, theme: Theme, series: Mapping[str, Sequence[Bar]], title: str, measure: str) -> None:
    axes = figure.add_subplot()
    first = next(iter(series.values()), ())
    width = 0.8 / max(1, len(series))
    reach = [bar.high if math.isfinite(bar.high) else bar.value for bars in series.values() for bar in bars]
    right = max([value for value in reach if math.isfinite(value)], default=1.0) or 1.0
    for order, (name, bars) in enumerate(series.items()):
        centres = np.arange(len(bars)) + (order - (len(series) - 1) / 2) * width
        values = np.array([bar.value for bar in bars], float)
        error = np.array([[bar.value - bar.low, bar.high - bar.value] for bar in bars], float).reshape(-1, 2).T
        axes.barh(
            centres, np.nan_to_num(values), width * 0.86, label=name, color=theme.series[order % len(theme.series)],
            xerr=np.clip(np.nan_to_num(error), 0, None), error_kw={"linewidth": 1.0, "ecolor": theme.ink}, capsize=2,
        )  # fmt: skip
        for centre, bar in zip(centres, bars, strict=True):
            text = f"{bar.value:.3f}".replace("0.", ".", 1) if math.isfinite(bar.value) else "no requests"
            end = bar.high if math.isfinite(bar.high) else bar.value if math.isfinite(bar.value) else 0.0
            axes.text(end + 0.012 * right, centre, text, va="center", fontsize=7.5)
    labels = [bar.label if bar.count is None else f"{bar.label}  (n = {bar.count:,})" for bar in first]
    axes.set_yticks(np.arange(len(first)), labels)
    axes.set(xlim=(0, right * 1.12), xlabel=measure)
    axes.invert_yaxis()
    axes.set_title(title)
    plain(axes)
    axes.spines["left"].set_visible(False)
    if len(series) > 1:
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)
