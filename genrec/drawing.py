"""How every figure is made: as PNG and SVG, for light and dark pages, without a display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; colour-blind readers can distinguish the ``series`` (Okabe & Ito)."""

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#c9ced6", ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"))
DARK = Theme("#15181c", "#e6e9ed", "#4a515b", ("#4FB3E8", "#F0B441", "#3CC79B", "#E39AC4", "#9AD3F2", "#F08650"))


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure, Theme], None]) -> None:
    """Draw a figure of ``size`` (width, height in inches).

    Writes ``path`` (PNG), the same name as SVG, and both as ``NAME-dark`` in the colours of the dark theme, which the
    finished figure is given: drawing twice would double the cost.
    """
    style: dict[str, Any] = {
        "text.color": LIGHT.ink, "axes.labelcolor": LIGHT.ink, "axes.edgecolor": LIGHT.faint,
        "xtick.color": LIGHT.ink, "ytick.color": LIGHT.ink, "axes.facecolor": LIGHT.paper,
        "figure.facecolor": LIGHT.paper, "savefig.facecolor": LIGHT.paper, "grid.color": LIGHT.faint,
        "legend.frameon": False, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "genrec",
        "text.parse_math": False,
    }  # fmt: skip
    with rc_context(style):  # type: ignore[arg-type]  # its keys are a list of literals
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # its own canvas: no global state, no display needed
        draw(figure, LIGHT)
        figure.savefig(path, dpi=130)
        figure.set_layout_engine("none")  # the layout stays as it is: finding it costs as much as drawing
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        _darken(figure)
        dark = path.with_stem(f"{path.stem}-dark")
        figure.savefig(dark, dpi=130, facecolor=DARK.paper)
        figure.savefig(dark.with_suffix(".svg"), metadata={"Date": None}, facecolor=DARK.paper)


def _darken(figure: Figure) -> None:
    """Give every part of a figure in the light theme the colours of the dark one; opacities stay."""
    light, dark = ((theme.paper, theme.ink, theme.faint, *theme.series) for theme in (LIGHT, DARK))
    colours = dict(zip((colour.lower() for colour in light), dark, strict=True))

    def changed(value: Any) -> Any:
        rgba = to_rgba_array(value)
        for row in rgba:  # none for a collection without lines
            row[:3] = to_rgb(colours.get(to_hex(row[:3]), row[:3]))
        return rgba if len(rgba) != 1 else rgba[0]

    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markeredgecolor", "markerfacecolor"):
            getter, setter = (getattr(artist, f"{verb}_{name}", None) for verb in ("get", "set"))
            if getter is not None and setter is not None:
                setter(changed(getter()))


def plain(axes: Axes, grid: str = "x") -> None:
    """Faint grid lines behind the data."""
    axes.set_axisbelow(True)
    axes.grid(axis=grid, linewidth=0.5)  # type: ignore[arg-type]
    axes.tick_params(length=0)
