"""Tuning: Optuna searches a small stated space on validation; bad trials are pruned, a stopped search goes on.

The backbone alone is fitted in a trial: its ``val/quality`` is what is maximised. The first trial has the config's own
values, so the result is never worse than the config on validation. The test split is never read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from genrec.artifacts.folders import fingerprint, read_json
from genrec.config.load import load_config, read_yaml, to_dict, with_overrides
from genrec.errors import UserError
from genrec.pipeline.stages import stage_tokenize
from genrec.runs.run import Run
from genrec.runs.stages import model_fits
from genrec.training.plan import TRAIN_VERSION

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
BUDGET = ["training.refit=false", "evaluation.baselines=[]"]
# Setting -> a list of values, or a range with low and high (log: whether ratios count).
SPACE: dict[str, Any] = {
    "training.learning_rate": {"low": 3e-4, "high": 4e-3, "log": True},
    "training.weight_decay": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.dropout": {"low": 0.1, "high": 0.6},
    "model.layers": [1, 2, 3],
}
TUNABLE = ("training.", "model.")
STUDY = "study.db"


@dataclass
class Tuned:
    """The best trial: its settings, its validation quality and that of the config as it was; the config written."""

    settings: dict[str, Any]
    quality: float
    before: float | None
    finished: int
    pruned: int
    config: Path


def tune(config: str | Path, overrides: list[str], trials: int = 20, space: Mapping[str, Any] = SPACE) -> Tuned:
    """Bring the study of a config to ``trials`` trials, and write the best settings as a config.

    The study lies in ``OUTPUT/NAME.tune`` and goes on there when it was stopped. Raises ``UserError`` for a space that
    names a setting it cannot search, and for a study of another config, log or space.
    """
    optuna = _optuna()
    check_space(space)
    given = [*overrides, *BUDGET]
    settings = load_config(config, given)
    base = Run(Path(settings.output) / f"{settings.name}.tune", settings)
    stage_tokenize(base)
    study = optuna.create_study(
        study_name="genrec", storage=f"sqlite:///{base.folder / STUDY}", load_if_exists=True, direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )  # fmt: skip
    _check_study(study, base, space)
    _resume(study, base, space)
    remaining = trials - sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)
    if remaining > 0:
        study.optimize(lambda trial: _quality(trial, base, space), n_trials=remaining)
    return _result(study, Path(config), overrides, base)


def check_space(space: Mapping[str, Any]) -> None:
    """``UserError`` for a space that is empty, or a setting of it that is no list and no range."""
    if not space:
        raise UserError("the space is empty; give settings such as model.layers: [1, 2]")
    for name, values in space.items():
        if not name.startswith(TUNABLE):
            raise UserError(f"space: {name} cannot be searched; only settings of {' and '.join(TUNABLE)} can")
        ranged = isinstance(values, Mapping) and {"low", "high"} <= {*values} <= {"low", "high", "log"}
        if not ranged and not (isinstance(values, list) and values):
            raise UserError(f"space: {name} must be a list of values, or low and high (and log), not {values!r}")


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("genrec tune needs the extra 'tune': pip install '.[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_study(study: optuna.Study, base: Run, space: Mapping[str, Any]) -> None:
    ignored = {"name": None, "output": None}
    key = fingerprint(to_dict(base.config) | ignored, base.ids.key, dict(space), TRAIN_VERSION)
    known = study.user_attrs.get("key")
    if known is not None and known != key:
        raise UserError(f"{base.folder}: the study there is of another config, log or space; remove it, or set name")
    study.set_user_attr("key", key)


def _resume(study: optuna.Study, base: Run, space: Mapping[str, Any]) -> None:
    """Begin with the config's own values; a trial that was stopped is tried again and goes on from its checkpoint."""
    import optuna

    if not study.trials:
        own = {name: OmegaConf.select(OmegaConf.create(to_dict(base.config)), name) for name in space}
        study.enqueue_trial({name: value for name, value in own.items() if _holds(space[name], value)})
    retried = study.user_attrs.get("retried", [])
    stopped = [trial for trial in study.trials if trial.state.name in ("RUNNING", "FAIL")]
    for trial in stopped:
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.number not in retried and trial.params:
            study.enqueue_trial(trial.params)
    study.set_user_attr("retried", [trial.number for trial in stopped])


def _holds(values: Any, value: Any) -> bool:
    """Whether a value lies in its part of the space; a value outside cannot be a trial."""
    if isinstance(values, list):
        return value in values
    return isinstance(value, int | float) and values["low"] <= value <= values["high"]


def _quality(trial: optuna.Trial, base: Run, space: Mapping[str, Any]) -> float:
    """Fit the backbone of a trial; its best validation quality. Raises ``TrialPruned`` where the pruner says so."""
    from genrec.training.fit import fit

    chosen = {name: _suggest(trial, name, values) for name, values in space.items()}
    config = with_overrides(base.config, [f"{name}={json.dumps(value)}" for name, value in chosen.items()])
    first = model_fits(config)[0]
    folder = base.folder / "trials" / fingerprint(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    log.info("trial %d: %s", trial.number, ", ".join(f"{name}={_short(value)}" for name, value in chosen.items()))
    plan = replace(first.resolved(folder), report=_reporter(trial))
    fit(config, base.dataset, base.ids, folder / first.name, plan)
    rows = read_json(folder / first.name / "curves.json")
    return max(row["val/quality"] for row in rows if row.get("val/quality") is not None)


def _reporter(trial: optuna.Trial) -> Callable[[int, float], None]:
    """Tells the study the quality of each epoch; raises ``TrialPruned`` in a trial that falls behind."""
    import optuna

    def report(epoch: int, quality: float) -> None:
        trial.report(quality, epoch)
        if trial.should_prune():
            log.info("trial %d: stopped after epoch %d, behind the median of the others", trial.number, epoch + 1)
            raise optuna.TrialPruned

    return report


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    whole = all(isinstance(values[end], int) for end in ("low", "high"))
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, values["low"], values["high"], log=bool(values.get("log")))


def _result(study: optuna.Study, config: Path, overrides: list[str], base: Run) -> Tuned:
    from optuna.trial import TrialState

    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    if not done:
        raise UserError(f"{base.folder}: no trial was finished; give more --trials")
    best = study.best_trial
    own = done[0].value if done[0].number == 0 else None
    written = OmegaConf.merge(read_yaml(config), OmegaConf.from_dotlist(overrides))
    for name, value in best.params.items():
        OmegaConf.update(written, name, value)
    target = base.folder / "tuned.yaml"
    lines = [
        f"# Written by genrec tune: the best of {len(done)} finished trials on validation (quality {best.value:.4f}"
        + (f"; the config as it was {own:.4f})." if own is not None else ")."),
        f"# Searched: {', '.join(best.params)}.",
    ]
    text = yaml.safe_dump(OmegaConf.to_container(written), sort_keys=False, allow_unicode=True)
    target.write_text("\n".join(lines) + "\n" + text, encoding="utf-8")
    pruned = sum(trial.state == TrialState.PRUNED for trial in study.trials)
    assert best.value is not None
    return Tuned(dict(best.params), best.value, own, len(done), pruned, target)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
