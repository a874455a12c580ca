"""Which logged numbers become panels, and the files that are written."""

from __future__ import annotations

from genrec.drawing import DARK, LIGHT
from genrec.training.curves import plot_curves, varying


def test_constant_and_repeated_numbers_are_left_out(tmp_path):
    curves = [
        {"step": 1, "train/loss": 3.0, "train/same": 3.0, "train/scale": 1.0, "val/ndcg": None, "learning_rate": 0.1},
        {"step": 2, "train/loss": 2.0, "train/same": 2.0, "train/scale": 1.0, "val/ndcg": 0.1, "learning_rate": 0.2},
        {"step": 3, "train/loss": None, "train/same": None, "train/scale": 1.0, "val/ndcg": 0.2, "learning_rate": 0.3},
    ]
    assert varying(curves) == {"train/loss": [(1, 3.0), (2, 2.0)], "val/ndcg": [(2, 0.1), (3, 0.2)]}
    plot_curves(curves, tmp_path / "curves.png")
    assert {file.name for file in tmp_path.iterdir()} == {
        "curves.png", "curves.svg", "curves-dark.png", "curves-dark.svg"
    }  # fmt: skip
    first = (tmp_path / "curves.svg").read_bytes()
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.svg").read_bytes() == first  # no time, no random id
    dark = (tmp_path / "curves-dark.svg").read_text().lower()
    assert DARK.paper in dark and LIGHT.paper not in dark and LIGHT.series[0].lower() not in dark
    plot_curves(curves[:1], tmp_path / "none.png")
