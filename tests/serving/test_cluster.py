"""Ray, where installed: replicas answer as one server does, and batch inference equals ``genrec predict``."""

from __future__ import annotations

import time

import httpx
import polars as pl
import pytest

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


def test_replicas_answer_and_share_users(cluster, bundle, tmp_path, model):
    from genrec.serving.cluster import application
    from genrec.serving.settings import ServeSettings

    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(
        application(
            ServeSettings(bundle, events=str(tmp_path / "events.sqlite"), time_budget_ms=30_000.0), replicas=2, cpus=0.5
        )
    )
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
