"""Bar charts with intervals, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from genrec.errors import UserError

_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)  # Okabe & Ito, colour-blind safe


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
    """Write a PNG: one colour per series, whose bars stand side by side under shared labels.

    All series hold the same labels in the same order, else ``UserError``. Counts, where given, are those of the first
    series. Uses its own canvas, not pyplot, so it changes no state of a notebook.
    """
    first = next(iter(series.values()), ())
    if any([bar.label for bar in bars] != [bar.label for bar in first] for bars in series.values()):
        raise UserError(
            f"figure '{title}': the models have different slices; give all of them arrays for the same requests"
        )
    width = 0.8 / max(1, len(series))
    figure = Figure(figsize=(max(5.0, 1.6 + len(first) * max(0.9, 0.35 * len(series))), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    centres = np.arange(len(first))
    for order, (name, bars) in enumerate(series.items()):
        values = np.array([bar.value for bar in bars])
        reach = np.array([[bar.value - bar.low, bar.high - bar.value] for bar in bars]).T
        axes.bar(
            centres + (order - (len(series) - 1) / 2) * width,
            values,
            width,
            label=name,
            color=_COLOURS[order % len(_COLOURS)],
            yerr=np.clip(np.nan_to_num(reach), 0, None),
            capsize=2,
            error_kw={"linewidth": 0.8},
        )
    labels = [bar.label if bar.count is None else f"{bar.label}\nn={bar.count:,}" for bar in first]
    is_crowded = max((len(bar.label) for bar in first), default=0) > 12
    axes.set_xticks(
        centres, labels, rotation=25 if is_crowded else 0, ha="right" if is_crowded else "center", fontsize=8
    )
    axes.set_ylabel(measure)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=0.4)
    if series:
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
