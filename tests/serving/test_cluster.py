"""Ray, where installed: replicas answer as one server does, and batch inference equals ``genrec predict``."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import httpx
import polars as pl
import pytest
from typer.testing import CliRunner

from genrec.cli.main import app
from genrec.errors import UserError
from genrec.inference.predict import predict_file, write_requests

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    serve.shutdown()
    ray.shutdown()


def test_batch_inference_equals_predict(cluster, trained_run, bundle, tmp_path):
    from genrec.serving.cluster import predict_folder

    write_requests(trained_run.folder, tmp_path, "test", None)
    requests = pl.read_parquet(tmp_path / "requests.parquet")
    (tmp_path / "parts").mkdir()
    for part, rows in enumerate(requests.iter_slices(50)):
        rows.write_parquet(tmp_path / "parts" / f"{part}.parquet")
    written = predict_folder(bundle, tmp_path / "parts", tmp_path / "answers", k=5, workers=1)
    predict_file(bundle, tmp_path / "requests.parquet", tmp_path / "alone.parquet", 5, "fused", None, True)
    alone = pl.read_parquet(tmp_path / "alone.parquet").sort("request_id", "rank")
    together = pl.read_parquet(tmp_path / "answers" / "*.parquet").sort("request_id", "rank")
    assert written == len(alone) and together["item_id"].equals(alone["item_id"])


def test_the_command_answers_a_file_as_without_ray(cluster, bundle, trained_run, tmp_path):
    write_requests(trained_run.folder, tmp_path, "test", None)
    few = tmp_path / "few.parquet"
    pl.read_parquet(tmp_path / "requests.parquet").head(9).write_parquet(few)
    command = ["predict", str(bundle), "--requests", str(few), "-k", "3", "--mode", "retrieve", "--output"]
    for output, extra in (("alone.parquet", []), ("together", ["--ray", "local"])):
        result = CliRunner().invoke(app, [*command, str(tmp_path / output), *extra], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    order = ["request_id", "rank"]
    alone, together = (pl.read_parquet(tmp_path / name).sort(order) for name in ("alone.parquet", "together/*.parquet"))
    assert len(alone) == 27 and together["item_id"].equals(alone["item_id"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"requests": "nothing"}, "--requests"), ({"output": "full"}, "--output"), ({"workers": -1}, "--workers")],
)
def test_bad_input_is_named_before_anything_runs(tmp_path, change, message):
    from genrec.serving.cluster import predict_folder

    for name in ("requests", "full"):
        (tmp_path / name).mkdir()
        pl.DataFrame({"request_id": ["a"]}).write_parquet(tmp_path / name / "part.parquet")
    given = {"requests": "requests", "output": "answers"} | change
    paths = {name: tmp_path / value if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(UserError, match=message):
        predict_folder(tmp_path, **paths)


def test_replicas_answer_and_share_users(cluster, bundle, tmp_path, model, monkeypatch):
    """``genrec serve --ray``: everything but the wait for a signal."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    answered = []

    class Stopped:
        def set(self) -> None: ...

        def wait(self) -> None:
            ask_replicas(model)
            answered.append(True)

    monkeypatch.setattr("genrec.serving.cluster.threading", SimpleNamespace(Event=Stopped))
    options = ["--port", "8123", "--replicas", "2", "--time-budget-ms", "30000", "--events", str(tmp_path / "e.sqlite")]
    result = CliRunner().invoke(app, ["serve", str(bundle), "--ray", "local", *options], catch_exceptions=False)
    assert result.exit_code == 0 and answered


def ask_replicas(model) -> None:
    with httpx.Client(base_url="http://127.0.0.1:8123", timeout=60) as client:
        history = model.snapshot.item_ids[:3]
        expected = [answer.item_id for answer in model.recommend(history=history)]
        for _ in range(6):
            assert [
                item["item_id"] for item in client.post("/v1/recommend", json={"history": history}).json()["items"]
            ] == expected
        client.post(
            "/v1/events", json={"events": [{"user_id": "u", "item_id": history[0], "timestamp": int(time.time())}]}
        ).raise_for_status()
        expected = [answer.item_id for answer in model.recommend(history=history[:1])]
        for _ in range(6):  # whichever replica answers has read the click
            assert [
                item["item_id"] for item in client.post("/v1/recommend", json={"user_id": "u"}).json()["items"]
            ] == expected
