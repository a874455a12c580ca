"""The command line: what a person sees, and exit code 2 with one clear line for each mistake that is theirs."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

from genrec.pipeline import stages as pipeline


@pytest.fixture
def copy(trained_run, tmp_path):
    return shutil.copytree(trained_run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("results*", "*refit"))


def refused(result, *words: str) -> None:
    code, _, err = result
    lines = err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in err, result
    for word in words:
        assert word in lines[0], (word, lines[0])


def items_of(out: str) -> list[str]:
    return [
        word
        for line in out.splitlines()
        for word in line.replace("│", " ").split()
        if word.startswith("i0") and word[1:].isdigit()
    ]


# --- mistakes ---


@pytest.mark.parametrize("command", ["run", "prepare", "tokenize", "train"])
def test_a_missing_config(genrec, command, tmp_path):
    refused(genrec(command, tmp_path / "none.yaml"), "config file not found", "none.yaml")


def test_an_unknown_key(genrec, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {dimm: 64}\n")
    refused(genrec("run", path), "config.yaml", "'model.dimm'", "did you mean 'model.dim'")
    path.write_text(f"output: {tmp_path}\n")
    refused(genrec("run", path, "trainning.epochs=2"), "trainning.epochs", "did you mean 'training.epochs'")
    refused(genrec("run", path, "model.dim"), "key=value")
    refused(genrec("run", path, "model.dim=wide"), "model.dim")
    assert [child.name for child in tmp_path.iterdir()] == ["config.yaml"], "a wrong config left a folder behind"


def test_a_broken_yaml_file(genrec, tmp_path):
    (tmp_path / "config.yaml").write_text("model: {dim: 3\n")
    refused(genrec("run", tmp_path / "config.yaml"), "config.yaml", "not valid YAML")


def test_missing_data(genrec, tmp_path):
    (tmp_path / "config.yaml").write_text(f"output: {tmp_path}\ndata: {{reader: table, path: {tmp_path}/nothing}}\n")
    refused(genrec("run", tmp_path / "config.yaml"), "nothing", "no such file")
    refused(genrec("run", tmp_path / "config.yaml", "data.reader=tables"), "tables", "table")


@pytest.mark.parametrize("command", [["recommend"], ["search", "shoes"], ["evaluate"], ["doctor"]])
def test_a_missing_run_folder(genrec, tmp_path, command):
    run = [tmp_path / "gone"]
    refused(genrec(command[0], *run, *command[1:]), "gone", "does not exist")
    refused(genrec(command[0], tmp_path, *command[1:]), "not a run folder")


def test_a_run_that_is_not_trained(genrec, prepared_run):
    refused(genrec("recommend", prepared_run.folder), "no trained model", "genrec train")


def test_an_unknown_user(genrec, trained_run):
    refused(genrec("recommend", trained_run.folder, "--user", "nobody"), "nobody", "not in the data")
    refused(genrec("search", trained_run.folder, "shoes", "--user", "nobody"), "nobody")


@pytest.mark.parametrize("query", ["", "   "])
def test_an_empty_query(genrec, trained_run, query):
    refused(genrec("search", trained_run.folder, query), "query is empty")


@pytest.mark.parametrize("k", ["0", "-3"])
def test_k_below_one(genrec, trained_run, k):
    refused(genrec("recommend", trained_run.folder, "-k", k), "k must be at least 1")
    refused(genrec("search", trained_run.folder, "shoes", "-k", k), "k must be at least 1")


def test_wrong_options(genrec, trained_run):
    refused(genrec("recommend", trained_run.folder, "--mode", "guess"), "guess", "fused, retrieve, generate")
    refused(genrec("recommend", trained_run.folder, "--fitted-on", "test"), "--fitted-on", "train+valid")
    refused(genrec("evaluate", trained_run.folder, "--split", "train"), "--split", "test, valid")
    assert genrec("recommend", trained_run.folder, "-k", "many")[0] == 2
    assert genrec("recommend")[0] == 2 and genrec("recomend", trained_run.folder)[0] == 2
    refused(genrec("requests", trained_run.folder, "--output", "x", "--query-kind", "typed"), "typed", "logged")


@pytest.mark.parametrize("folder", ["model", "dataset", "semantic_ids", "reranker"])
def test_another_format_version(genrec, copy, folder):
    path = copy / folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    refused(genrec("recommend", copy), folder, "format version 99")
    refused(genrec("doctor", copy), "format version 99")


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("model/manifest.json", "no trained model"),
        ("dataset/manifest.json", "half-written"),
        ("semantic_ids/manifest.json", "half-written"),
        ("reranker/manifest.json", "half-written"),
        ("model/model.safetensors", "is missing"),
        ("candidate_features/features.npz", "candidate_features"),
        ("config.json", "not a run folder"),
    ],
)
def test_a_half_written_run(genrec, copy, lost, words):
    (copy / lost).unlink()
    refused(genrec("recommend", copy), words)


def test_a_file_cut_short(genrec, copy):
    path = copy / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(genrec("recommend", copy), "model.safetensors", "not what was written")
    path = copy / "dataset" / "items.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    refused(genrec("doctor", copy), "items.npy", "not what was written")


def test_wrong_request_files(genrec, trained_run, tmp_path):
    def predict(path):
        return genrec("predict", trained_run.folder, "--requests", path, "--output", tmp_path / "out.parquet")

    refused(predict(tmp_path / "none.parquet"), "file not found")
    (tmp_path / "text.parquet").write_text("request_id,user_id\n1,2\n")
    refused(predict(tmp_path / "text.parquet"), "not a Parquet file")
    for name, columns, words in (
        ("a", {"user_id": ["u"]}, "request_id"),
        ("b", {"request_id": ["1"]}, "history"),
        ("c", {"request_id": ["1"], "user_id": ["nobody"]}, "row 1"),
        ("d", {"request_id": ["1"], "history": ["i1"]}, "history"),
        ("e", {"request_id": ["1"], "history": [[{"item": "i1"}]]}, "item_id"),
        ("f", {"request_id": ["1"], "user_id": [None], "timestamp": ["today"]}, "today"),
    ):
        pl.DataFrame(columns).write_parquet(tmp_path / f"{name}.parquet")
        refused(predict(tmp_path / f"{name}.parquet"), words)
    assert not (tmp_path / "out.parquet").exists()


def test_our_mistakes_are_code_1_with_a_traceback(genrec, monkeypatch):
    def broken():
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("genrec.cli.doctor.machine", broken)
    assert genrec("doctor")[0] == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)
def test_limits_of_the_machine_are_one_line(genrec, monkeypatch, copy, tmp_path, error, words):
    """The prepared dataset stays as it was."""

    def fail(*_, **__):
        raise error

    config = json.loads((copy / "config.json").read_text()) | {"output": str(tmp_path), "name": "copy", "seed": 99}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    before = (copy / "dataset" / "manifest.json").read_bytes()
    monkeypatch.setattr("numpy.save", fail)
    refused(genrec("prepare", tmp_path / "config.yaml"), words, "run the same command again")
    assert (copy / "dataset" / "manifest.json").read_bytes() == before and not list(copy.glob(".*.partial"))
    assert genrec("doctor", copy / "dataset")[0] == 0


def test_ctrl_c_says_how_to_go_on(genrec, monkeypatch, tmp_path):
    def stopped(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "stage_train", stopped)
    (tmp_path / "config.yaml").write_text(f"output: {tmp_path}\n")
    code, _, err = genrec("train", tmp_path / "config.yaml")
    assert code == 130 and "run the same command again" in err


# --- what works ---


def test_recommend_and_search(genrec, trained_run):
    user = trained_run.dataset.user_ids[2]
    code, out, _ = genrec("recommend", trained_run.folder, "--user", user, "-k", "4")
    assert code == 0 and user in out and len(set(items_of(out))) == 4
    title = trained_run.dataset.item_table.filter(pl.col("item_id") == items_of(out)[0])["title"][0]
    assert title in out
    for mode in ("fused", "retrieve", "generate"):
        code, out, _ = genrec(
            "search", trained_run.folder, trained_run.dataset.query_texts[0], "-k", "4", "--mode", mode, "--user", user
        )
        assert code == 0 and len(set(items_of(out))) == 4


def test_k_beyond_the_catalogue(genrec, trained_run):
    for mode in ("retrieve", "generate"):
        code, out, _ = genrec("search", trained_run.folder, "anything", "-k", "5000", "--mode", mode)
        assert code == 0 and len(set(items_of(out))) == trained_run.dataset.n_items
    code, out, _ = genrec("recommend", trained_run.folder, "-k", "5000")
    assert code == 0 and len(set(items_of(out))) == trained_run.dataset.n_items


def test_nobody_gets_the_popular_items(genrec, trained_run):
    code, out, _ = genrec("recommend", trained_run.folder, "-k", "5", "--fitted-on", "train")
    counts = trained_run.dataset.item_counts(0)
    actual = [int(counts[trained_run.dataset.item_index[item]]) for item in items_of(out)]
    assert code == 0 and "popular" in out and actual == sorted(counts.tolist(), reverse=True)[:5]


def test_a_user_without_history_gets_popular_items(genrec, trained_run, tmp_path):
    table = pl.DataFrame(
        {"request_id": ["a", "b", "c"], "history": [None, [], ["never heard of"]]},
        schema_overrides={"history": pl.List(pl.String)},
    )
    table.write_parquet(tmp_path / "requests.parquet")
    code, _, _ = genrec(
        "predict",
        trained_run.folder,
        "--requests",
        tmp_path / "requests.parquet",
        "--output",
        tmp_path / "o.parquet",
        "-k",
        "3",
    )
    answers = pl.read_parquet(tmp_path / "o.parquet")
    counts = trained_run.dataset.item_counts(0)
    assert code == 0 and answers["request_id"].to_list() == [name for name in "abc" for _ in range(3)]
    for _, part in answers.group_by("request_id"):
        assert [int(counts[trained_run.dataset.item_index[item]]) for item in part["item_id"]] == sorted(
            counts.tolist(), reverse=True
        )[:3]


def test_requests_predict_and_evaluate(genrec, trained_run, tmp_path):
    code, out, _ = genrec("requests", trained_run.folder, "--output", tmp_path / "asked", "--query-kind", "logged")
    assert code == 0 and "requests" in out
    code, _, _ = genrec(
        "predict",
        trained_run.folder,
        "--requests",
        tmp_path / "asked" / "requests.parquet",
        "--output",
        tmp_path / "a" / "b.parquet",
    )
    assert code == 0 and len(pl.read_parquet(tmp_path / "a" / "b.parquet"))
    code, out, _ = genrec("evaluate", trained_run.folder, "--output", tmp_path / "m" / "metrics.json")
    assert code == 0 and "Recommendation" in out and json.loads((tmp_path / "m" / "metrics.json").read_text())["rows"]


def test_a_second_run_trains_nothing(genrec, trained_run, tmp_path, monkeypatch):
    """The command on the same config finds everything up to date and shows the table again."""
    from genrec.config.load import to_dict

    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(to_dict(trained_run.config)))  # JSON is YAML
    monkeypatch.setattr("genrec.training.fit.new_network", lambda *_: pytest.fail("it was fitted again"))
    code, out, _ = genrec("run", path)
    assert code == 0 and "results:" in out and "genrec, fused" in out


def test_doctor_and_help(genrec, trained_run):
    code, out, _ = genrec("doctor", trained_run.folder)
    assert code == 0 and "torch" in out and "model: whole" in out and "reranker: whole" in out
    code, out, _ = genrec("--help")
    assert code == 0 and all(name in out for name in ("run", "recommend", "search", "predict", "datasets"))
    code, out, _ = genrec("datasets", "list")
    assert code == 0 and "movielens-100k" in out


def test_category_and_suggestions(genrec, trained_run):
    category = trained_run.dataset.item_table["category"][0][-1]
    for command in (
        ["recommend", trained_run.folder],
        ["search", trained_run.folder, trained_run.dataset.query_texts[0]],
    ):
        code, out, _ = genrec(*command, "-k", "2", "--category", category)
        assert code == 0 and f"in {category}" in " ".join(out.split())
    refused(genrec("recommend", trained_run.folder, "--category", "zzz"), "zzz", "did you mean")
    code, out, _ = genrec("suggest", trained_run.folder, "--user", trained_run.dataset.user_ids[0], "-k", "3")
    assert code == 0 and sum(query in out for query in trained_run.dataset.query_texts) >= 3
    refused(genrec("suggest", trained_run.folder, "--user", "nobody"), "nobody", "not in the data")


def test_protocols_by_command(genrec, trained_run, tmp_path):
    code, out, _ = genrec(
        "evaluate", trained_run.folder, "--protocol", "product-search", "--output", tmp_path / "p.json"
    )
    assert code == 0 and "topics (person and query)" in " ".join(out.split()) and (tmp_path / "p.json").is_file()
    refused(genrec("evaluate", trained_run.folder, "--protocol", "sample"), "sample", "did you mean 'sampled'")
    refused(genrec("evaluate", trained_run.folder, "--seeds", "3"), "--seeds", "--protocol")
    refused(
        genrec("evaluate", trained_run.folder, "--protocol", "cold-user", "--seeds", "3"), "--seeds", "draws nothing"
    )
