"""``genrec init``: from a file to a config that runs, saying what it took the log for."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from typer.testing import CliRunner

from genrec.cli.main import app
from genrec.config.load import load_config
from genrec.data.dataset import Dataset
from genrec.data.prepare.pipeline import prepare

LOG = "Kunde;Artikel;Bezeichnung;Preis;Datum\n" + "".join(
    f"K{user};A{(user + step) % 5};Lampe {(user + step) % 5} grün;1.0{step}9,50;{step + 1:02d}.05.2024 12:30\n"
    for user in range(6)
    for step in range(4)
)


def run(*arguments: object):
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def test_a_guessed_config_prepares(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_bytes(LOG.encode("cp1252"))
    target = tmp_path / "orders.yaml"
    result = run(tmp_path / "orders.csv", "--output", target)
    assert result.exit_code == 0, result.output
    assert "2024-05-01 12:30:00" in result.output and "Lampe 0 grün" in result.output
    dataset = Dataset(prepare(load_config(target, []), tmp_path / "dataset"))
    assert (len(dataset.user_ids), dataset.n_items, len(dataset.items)) == (6, 5, 24)
    items = dataset.item_table.sort("item_id")
    assert items["title"][0] == "Lampe 0 grün" and items["price"].null_count() == 0
    assert dataset.query_texts  # made from titles


def test_an_unreadable_log_and_a_config_that_is_there_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": ["x"], "b": ["y"]}).write_csv(tmp_path / "log.csv")
    result = run(tmp_path / "log.csv", "--output", tmp_path / "c.yaml")
    assert result.exit_code != 0 and "user or the item" in str(result.exception)
    assert not (tmp_path / "c.yaml").exists()
    (tmp_path / "c.yaml").write_text("name: mine\n")
    assert "--force" in str(run(tmp_path / "log.csv", "--output", tmp_path / "c.yaml").exception)
