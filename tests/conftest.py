"""Shared fixtures: one tiny trained run, prepared datasets and untrained networks. Everything comes from the
simulator."""

from __future__ import annotations

import os
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
import pytest
import torch

from genrec.cli import main as cli
from genrec.config.load import load_config
from genrec.console import console
from genrec.data.dataset import Dataset
from genrec.data.prepare.pipeline import prepare
from genrec.inference.bundle import export
from genrec.pipeline.stages import stage_evaluate, stage_tokenize, stage_train
from genrec.runs.run import Run
from genrec.training.fit import new_network

SIMULATOR = {"n_users": 150, "n_items": 80, "n_events": 3000, "n_categories": 8, "n_brands": 6, "seed": 1}
TINY = [
    "data.reader=simulator",
    "data.fetch=null",
    "data.path=null",
    "data.min_user_events=1",
    "data.min_item_events=1",
    "text.dim=16",
    "model.dim=16",
    "model.heads=2",
    "model.layers=1",
    "model.max_length=10",
    "model.dropout=0.3",
    "model.anchors=8",
    "training.epochs=2",
    "training.decoder_epochs=4",
    "evaluation.sasrec.training.epochs=2",
    "training.stride=5",
    "training.batch_size=64",
    "training.accelerator=cpu",
    "evaluation.ks=[5,10,20]",
    "decoding.beam=30",
    "decoding.dense=40",
    "decoding.cooccurrence=20",
    *(f"data.options.{name}={value}" for name, value in SIMULATOR.items()),
]
# One training step then equals the same step with an own random state, and the CPU stays cool: the tests share two
# cores with others.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_overrides():
    """``tiny_overrides(folder, *more)``: the overrides of a run that takes seconds."""
    return lambda output, *more: [*TINY, f"output={output}", *more]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, tiny_overrides) -> Run:
    """The whole road, once: real (logged) queries, every baseline, a refit."""
    run = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), "name=tiny"))
    stage_train(run)
    stage_evaluate(run)
    return run


@pytest.fixture
def copied_run(trained_run, tmp_path):
    """``copied_run(*overrides)``: a fresh copy of the tiny trained run, opened with overrides."""

    def make(*overrides: str, name: str = "run") -> Run:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(trained_run.folder, folder)
        return Run.open(folder, list(overrides))

    return make


@pytest.fixture(scope="session")
def bundle(trained_run, tmp_path_factory):
    """The exported folder, without the torch.export programs (they have a test of their own)."""
    return export(
        trained_run.folder, tmp_path_factory.mktemp("bundles") / "bundle", programs=False, licence="for tests only"
    )


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory, tiny_overrides) -> Run:
    """Prepared and tokenized, not trained; two layers, real queries in the histories."""
    run = Run.create(
        None, tiny_overrides(tmp_path_factory.mktemp("runs"), "name=prepared", "model.layers=2", "decoding.beam=10")
    )
    stage_tokenize(run)
    return run


@pytest.fixture(scope="session")
def synthetic_run(tmp_path_factory, tiny_overrides) -> Run:
    """A log without searches and synthetic queries instead, prepared and tokenized."""
    more = ("name=synthetic", "data.options.search_share=0", "queries.synthetic=[category,title]", "queries.share=0.4")
    run = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), *more))
    stage_tokenize(run)
    return run


@pytest.fixture(scope="session")
def network(prepared_run):
    """An untrained network with node, code and item vectors large enough to matter, in evaluation mode."""
    model = new_network(prepared_run.config, prepared_run.dataset, prepared_run.ids, generate=True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def prepare_table(tmp_path):
    """``prepare_table(events, items, *overrides)``: a hand-made log (rows of dicts) prepared through the ``table``
    reader."""
    made = iter(range(100))

    def make(events: list[dict], items: list[dict] | None = None, *overrides: str) -> Dataset:
        folder = tmp_path / f"log-{next(made)}"
        folder.mkdir()
        pl.DataFrame(events, infer_schema_length=None).write_parquet(folder / "events.parquet")
        options = ["data.options.events=events.parquet"]
        if items is not None:
            pl.DataFrame(items, infer_schema_length=None).write_parquet(folder / "items.parquet")
            options.append("data.options.items=items.parquet")
        config = load_config(None, ["data.reader=table", f"data.path={folder}", *options, *overrides])
        return Dataset(prepare(config, folder / "dataset"))

    return make


@pytest.fixture
def genrec(monkeypatch, capsys):
    """``genrec(*arguments)`` -> (exit code, output, errors), through ``main`` as the installed command calls it."""
    monkeypatch.setattr(console, "width", 200)

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["genrec", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
