"""The stages of a run: the networks that are fitted, and what every artefact is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genrec.artifacts.folders import fingerprint, open_artifact, read_json
from genrec.artifacts.stages import Stage, StageGraph
from genrec.config.load import check_keys, to_dict
from genrec.config.schema import SEQUENCE_ROWS, Config
from genrec.data.dataset import KIND as DATASET_KIND
from genrec.data.dataset import VALID, Dataset
from genrec.data.prepare.pipeline import checksum_index, prepare_key
from genrec.errors import UserError
from genrec.model.saved import KIND as MODEL_KIND
from genrec.semantic_ids.tokenize import KIND as IDS_KIND
from genrec.semantic_ids.tokenize import tokenize_key
from genrec.training.plan import FitPlan, model_key

RERANKER_KIND, RERANKER_VERSION = "reranker", 20
FEATURES_KIND, FEATURES_VERSION = "candidate_features", 11
PREFERENCE_KIND, PREFERENCE_VERSION = "preference", 2
RESULTS_KIND, RESULTS_VERSION = "results", 1
SPLITS = {"test": "results", "valid": "results_valid"}  # the folder of each split's results
EXECUTION = ("batch_size",)  # settings of decoding that change no answer
WHOLE_SOFTMAX = 1 << 15  # up to so many items the SASRec row is trained with a softmax over all of them


@dataclass(frozen=True)
class Fit:
    """One network that is fitted: its folder in the run, its settings, and the fits that come before it.

    ``backbone`` is the fit whose frozen network the code decoder is trained on. ``first`` is the fit on train that
    chose the epochs of this refit.
    """

    name: str
    config: Config
    plan: FitPlan
    backbone: str | None = None
    first: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the stages that this fit is made from."""
        return "semantic_ids", *(name for name in (self.backbone, self.first) if name)

    def resolved(self, folder: Path) -> FitPlan:
        """The plan with what the earlier fits of a run folder decided."""
        plan = self.plan
        if self.first:
            plan = replace(plan, epochs=open_artifact(folder / self.first, MODEL_KIND)["info"]["epochs"])
        return replace(plan, backbone_folder=folder / self.backbone if self.backbone else None)


def model_fits(config: Config) -> list[Fit]:
    """The fits of our network, in order."""
    tasks = config.training.tasks
    return _fits("model", config, FitPlan(searches="search" in tasks, recommends="recommendation" in tasks))


def baseline_fits(config: Config, n_items: int) -> list[Fit]:
    """The fits of the baselines that are networks; none without their rows."""
    fits = []
    for name in SEQUENCE_ROWS:
        if name in config.evaluation.baselines:
            plan = FitPlan(generate=False, searches=False, network=name)
            fits += _fits(name, sasrec_config(config, n_items), plan)
    return fits


def _fits(name: str, config: Config, plan: FitPlan) -> list[Fit]:
    """Fit on train, then on train and validation. The code decoder may have a stage of its own."""
    staged = plan.generate and config.training.decoder_epochs != 0 and config.training.generate_weight > 0
    fits = []
    for suffix, last in (("", plan.last), ("_refit", VALID))[: 1 + config.training.refit]:
        backbone = f"{name}_backbone{suffix}" if staged else None
        whole = Fit(f"{name}{suffix}", config, replace(plan, last=last), backbone, name if suffix else None)
        if backbone:
            first = f"{name}_backbone" if suffix else None
            fits.append(Fit(backbone, config, replace(whole.plan, generate=False), None, first))
        fits.append(whole)
    return fits


def sasrec_config(config: Config, n_items: int) -> Config:
    """The settings of the SASRec and BSARec rows: what later studies found best, then ``evaluation.sasrec``.

    Up to ``WHOLE_SOFTMAX`` items the softmax runs over all of them, which is what makes the row strong.
    """
    check_keys(list(_dotted(config.evaluation.sasrec)), "evaluation.sasrec")
    off = Config()
    fixed = {
        "model": {
            "dim": 64,
            "layers": 2,
            "heads": 1,
            "dropout": 0.5,
            "anchors": 0,
            "query_anchors": False,
            **{name: getattr(off.model, name) for name in SASREC_OFF_MODEL},
        },
        "training": {
            "epochs": None,
            "patience": 5,
            "weight_decay": 0.0,
            "learning_rate": 1e-3,
            "negatives": 0 if n_items <= WHOLE_SOFTMAX else None,
            **{name: getattr(off.training, name) for name in SASREC_OFF_TRAINING},
        },
    }
    tree = OmegaConf.merge(OmegaConf.structured(config), fixed, OmegaConf.create(config.evaluation.sasrec))
    result = OmegaConf.to_object(tree)
    assert isinstance(result, Config)
    return result


# Parts of our network that SASRec does not have; their defaults are "off".
SASREC_OFF_MODEL = ("situation", "summary_tokens", "user_tokens", "reasoning_steps", "stages", "ranking")
SASREC_OFF_TRAINING = ("progressive", "infonce_easy", "align_epochs", "cooccur_epochs")


def _dotted(tree: dict, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def run_stages(folder: Path, config: Config) -> StageGraph:
    """All artefacts that the config asks for, each with the key that it must have."""

    def key(name: str) -> str:
        return read_json(folder / name / "manifest.json")["key"]

    def dataset_key() -> str | None:
        path = config.data.path  # the log may be gone, or lie elsewhere on this machine
        if path and not Path(path).exists():
            return None
        return prepare_key(config, checksum_index(folder / "dataset"))

    stages = [
        Stage("dataset", DATASET_KIND, dataset_key),
        Stage("semantic_ids", IDS_KIND, lambda: tokenize_key(config, Dataset(folder / "dataset")), ("dataset",)),
        Stage("candidate_features", FEATURES_KIND, lambda: features_key(config, key("dataset")), ("dataset",)),
        Stage("reranker", RERANKER_KIND, lambda: reranker_key(folder, config), ("model", "candidate_features")),
        Stage("preference", PREFERENCE_KIND, lambda: preference_key(folder, config), ("model",)),
        Stage("model_preferred", MODEL_KIND, lambda: key("preference"), ("preference",), lambda: _kept(folder)),
    ]
    fits = model_fits(config)
    if (folder / "dataset" / "manifest.json").is_file():
        fits += baseline_fits(config, read_json(folder / "dataset" / "manifest.json")["info"]["items"])
    for fit in fits:
        stages.append(Stage(fit.name, MODEL_KIND, _fit_key(folder, fit, key), fit.inputs))
    graph = StageGraph(folder, stages)
    for split, name in SPLITS.items():
        graph.add(Stage(name, RESULTS_KIND, partial(results_key, graph, config, split), ("reranker",)))
    return graph


def _fit_key(folder: Path, fit: Fit, key: Callable[[str], str]) -> Callable[[], str]:
    return lambda: model_key(fit.config, key("semantic_ids"), fit.resolved(folder))


def features_key(config: Config, dataset_key: str) -> str:
    """The key of the counts and of the lexical index behind candidate features."""
    return fingerprint(FEATURES_VERSION, dataset_key, config.text.language, config.seed)


def reranker_key(folder: Path, config: Config) -> str:
    """The key of the re-ranker, from a run folder with a model and candidate features."""
    made_from = [
        open_artifact(folder / name, kind)["key"]
        for name, kind in (("model", MODEL_KIND), ("candidate_features", FEATURES_KIND))
    ]
    return fingerprint(RERANKER_VERSION, *made_from, _search_settings(config))


def results_key(graph: StageGraph, config: Config, split: str, *extra: Any) -> str:
    """The key of an evaluation: of the re-ranker, every fit that has rows, and what the table shows.

    ``extra``: what else the tables depend on, such as the name of a protocol.
    """
    rows = [name for name in graph.stages if name.startswith(("model", *SEQUENCE_ROWS)) and graph.fault(name) is None]
    keys = {name: graph.require(name)["key"] for name in ("reranker", *rows)}
    settings = to_dict(config.evaluation), _search_settings(config), config.seed
    return fingerprint(RESULTS_VERSION, split, keys, *settings, *extra)


def _search_settings(config: Config) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config.decoding).items() if name not in EXECUTION}


def preference_key(folder: Path, config: Config) -> str:
    """The key of the preference stage, kept or refused."""
    made_from = (
        open_artifact(folder / "model", MODEL_KIND)["key"],
        open_artifact(folder / "dataset", DATASET_KIND)["key"],
        open_artifact(folder / "semantic_ids", IDS_KIND)["key"],
    )
    return fingerprint(PREFERENCE_VERSION, *made_from, config.seed, to_dict(config.preference))


def _kept(folder: Path) -> None:
    if not read_json(folder / "preference" / "manifest.json")["info"]["kept"]:
        raise UserError(f"{folder / 'model_preferred'} was refused by the acceptance gate; it is left aside")
