"""How every figure is made: light and dark, as PNG for a page and SVG for print, without a display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; ``series`` are told apart by colour-blind readers too (Okabe & Ito)."""

    name: str
    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("", "#ffffff", "#1f2328", "#c9ced6", ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"))
DARK = Theme(
    "-dark", "#15181c", "#e6e9ed", "#4a515b", ("#4FB3E8", "#F0B441", "#3CC79B", "#E39AC4", "#9AD3F2", "#F08650")
)


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure, Theme], None]) -> None:
    """Draw a figure of ``size`` (width, height in inches) in both themes.

    Writes ``path`` (PNG) and, beside it, the same name as SVG, both again with ``-dark``.
    """
    for theme in (LIGHT, DARK):
        style: dict[str, Any] = {
            "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.edgecolor": theme.faint,
            "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.facecolor": theme.paper,
            "figure.facecolor": theme.paper, "savefig.facecolor": theme.paper, "grid.color": theme.faint,
            "legend.frameon": False, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "genrec",
            "text.parse_math": False,
        }  # fmt: skip
        with rc_context(style):  # type: ignore[arg-type]  # its keys are a list of literals
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)  # its own canvas: no global state, no display needed
            draw(figure, theme)
            for ending in (path.suffix, ".svg"):
                target = path.with_name(f"{path.stem}{theme.name}{ending}")
                figure.savefig(target, dpi=130, metadata={"Date": None} if ending == ".svg" else None)


def plain(axes: Axes, grid: str = "x") -> None:
    """Faint grid lines behind the data."""
    axes.set_axisbelow(True)
    axes.grid(axis=grid, linewidth=0.5)  # type: ignore[arg-type]
    axes.tick_params(length=0)
