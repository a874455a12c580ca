"""Configs: unknown keys, wrong types and impossible values stop with one line that names the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genrec.config.checks import seconds_of
from genrec.config.load import config_from_dict, load_config, to_dict
from genrec.config.reference import with_reference
from genrec.config.removed import REMOVED
from genrec.config.schema import Config
from genrec.config.setting import settings
from genrec.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path):
    config = load_config(path)
    assert config.name and isinstance(config, Config)
    assert config_from_dict(to_dict(config), "again") == config


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize(
    ("text", "named", "nearest"),
    [
        ("model: {dimm: 3}", "model.dimm", "model.dim"),
        ("trainning: {epochs: 3}", "trainning", "training"),
        ("training: {learning_rat: 0.1}", "training.learning_rat", "training.learning_rate"),
        ("semantic_ids: {behavior_share: 0.1}", "semantic_ids.behavior_share", "semantic_ids.behaviour_share"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, text, named, nearest):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=f"config.yaml: unknown key '{named}'; did you mean '{nearest}'"):
        load_config(path)
    key = text.replace(": {", ".").split(":")[0]
    with pytest.raises(UserError, match=f"command line: unknown key.*did you mean '{nearest}"):
        load_config(None, [f"{key}=1"])


@pytest.mark.parametrize("key", sorted(REMOVED))
def test_a_removed_key_says_what_to_do(key):
    with pytest.raises(UserError, match=f"'{key}' was removed; (set|list|delete|start) "):
        load_config(None, [f"{key}=1"])
    assert key not in {one.key for one in settings(Config)}


def test_advice_about_removed_keys_names_settings_that_exist():
    known = {one.key for one in settings(Config)}
    named = re.findall(r"\b(?:data|decoding|model|preference|split|text|training)\.\w+", " ".join(REMOVED.values()))
    assert len(named) > 10 and set(named) <= known


@pytest.mark.parametrize(
    "override",
    ["model.dim=wide", "model.pointer=perhaps", "training.learning_rate=fast", "model=5", "evaluation.ks=ten"],
)
def test_a_wrong_type_names_its_key(tmp_path, override):
    key, value = override.split("=")
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert (key in str(error.value) or key == "model") and len(str(error.value).splitlines()) == 1
    section, _, name = key.partition(".")
    path = write(tmp_path, f"{section}: {{{name}: {value}}}" if name else f"{section}: {value}")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just words", "model: {dim: 3", "model: [", "name: 'open", "a\tb: c: d"]
)
def test_a_file_that_is_no_mapping(tmp_path, text):
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        load_config(write(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_file_is_the_default_config(tmp_path):
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    "override",
    [
        "split.kind=random",
        "model.dim=0",
        "model.dim=-8",
        "model.dim=10",
        "model.temperature=0",
        "training.epochs=0",
        "training.generate_share=1.5",
        "queries.share=-0.1",
        "queries.synthetic=[colour]",
        "evaluation.baselines=[bert]",
        "evaluation.ks=[]",
        "evaluation.ks=[0]",
        "model.time_bucket=0",
        "decoding.beam=0",
        "decoding.text_neighbours=-1",
        "decoding.cooccurrence=-2",
        "training.accumulate=0",
        "training.strategy=ring",
        "training.precision=16",
        "training.checkpoint_minutes=-1",
        "training.patience=0",
    ],
)
def test_a_value_out_of_range_names_its_key(override):
    with pytest.raises(UserError, match=override.split("=")[0].replace(".", r"\.")):
        load_config(None, [override])


def test_a_network_needs_some_input():
    with pytest.raises(UserError, match="model.item_inputs: an empty list"):
        load_config(None, ["model.item_inputs=[]"])


def test_overrides_beat_the_file_and_the_later_beats_the_earlier(tmp_path):
    path = write(tmp_path, "name: file\nmodel: {dim: 32, layers: 3}\n")
    config = load_config(
        path, ["model.dim=64", "model.dim=48", "evaluation.ks=[3,7]", "data.options.a.b=x=y", "data.path=null"]
    )
    assert (config.name, config.model.dim, config.model.layers, config.evaluation.ks) == ("file", 48, 3, [3, 7])
    assert config.data.options == {"a": {"b": "x=y"}} and config.data.path is None


@pytest.mark.parametrize("override", ["model.dim", "model.dim 3", "=3", "--dim=3", "model.=3", "name=["])
def test_what_is_no_override(override):
    with pytest.raises(UserError):
        load_config(None, [override])


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="config file not found"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="not found"):
        load_config(tmp_path)


def test_lists_are_not_shared_between_configs():
    Config().evaluation.ks.append(3)
    load_config(None).evaluation.ks.append(4)
    assert load_config(None).evaluation.ks == [5, 10, 20]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.duplicates=drop"], "data.duplicates: 'drop' is not one of keep, drop-exact, drop-consecutive"),
        (["data.start_time=soon"], "data.start_time: 'soon' is neither"),
        (["data.start_time=2024-01-02", "data.end_time=2024-01-02"], "data.start_time: 2024-01-02 is not before"),
        (["data.actions=[]"], "data.actions: an empty list"),
        (["split.kind=sessions"], "split.kind: 'sessions' is not one of"),
        (["split.session_gap=0"], "split.session_gap: must be above 0"),
    ],
)
def test_data_and_split_values_that_cannot_be(overrides, said):
    with pytest.raises(UserError, match=said):
        load_config(None, overrides)


def test_times_of_a_config_are_seconds_in_utc():
    assert [seconds_of(text, "k") for text in ("7", "1970-01-02", "1970-01-01T02:00:00+01:00", None)] == [
        7,
        86_400,
        3_600,
        None,
    ]


def test_every_setting_states_what_it_does():
    for one in settings(Config):
        assert one.sentence.endswith("."), one.key
        one.check(one.default)


def test_bounds_hold_for_elements_and_choices_for_keys():
    with pytest.raises(UserError, match=r"semantic_ids.level_sizes: must be at least 1, is -1"):
        load_config(None, ["semantic_ids.level_sizes=[1,-1]"])
    with pytest.raises(UserError, match="preference.reward: 'shown' is not one of click, next"):
        load_config(None, ["preference.reward.shown=1"])
    with pytest.raises(UserError, match=r"model.dropout: must lie between 0 and 1, is nan"):
        load_config(None, ["model.dropout=.nan"])


def test_the_reference_page_is_current():
    page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert with_reference(page) == page, "run: python -m genrec.config.reference configs/README.md"
