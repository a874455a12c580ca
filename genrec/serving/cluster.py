"""More than one machine, by Ray (extra ``genrec[ray]``): replicas on Ray Serve, batch inference with Ray Data.

Replicas share users' events through their store: a Redis server across machines, one SQLite file on one machine.
Items added through one replica reach the others when these reload or start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from genrec.errors import UserError
from genrec.serving.settings import ServeSettings


def _ray():
    try:
        import ray
        import ray.data
        import ray.serve
    except ImportError:
        raise UserError("replicas and batch inference on a cluster need: pip install '.[ray]'") from None
    return ray


def application(settings: ServeSettings, replicas: int = 2, cpus: float = 1.0) -> Any:
    """A Ray Serve application of ``replicas`` whole servers; start it with ``ray.serve.run(application(...))``.

    ``cpus`` are reserved for each replica. Ray Serve listens; ``host`` and ``port`` of the settings have no say.
    """
    serve = _ray().serve
    if replicas < 1:
        raise UserError(f"replicas must be at least 1, is {replicas}")

    def build() -> Any:
        from genrec.serving.app import create_app
        from genrec.serving.engine import Engine

        return create_app(Engine(settings))

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=settings.queue, ray_actor_options={"num_cpus": cpus})
    @serve.ingress(build)
    class Replica:
        """One server."""

    return Replica.bind()  # type: ignore[attr-defined]  # Ray's decorator adds it


class _Predictor:
    """One worker of the batch inference: the model is loaded once."""

    def __init__(self, bundle: str, k: int, mode: str, exclude_seen: bool):
        from genrec.inference.recommender import Recommender

        self.model, self.options = Recommender.load(bundle), (k, mode, exclude_seen)

    def __call__(self, batch: Any) -> Any:
        from genrec.inference.predict import request_table

        table, histories = request_table(pl.DataFrame(pl.from_arrow(batch)), "requests")
        return self.model.predictions(table, self.model.requests(table, histories), *self.options).to_arrow()


def predict_folder(
    bundle: Path,
    requests: Path,
    output: Path,
    k: int = 100,
    mode: str = "fused",
    exclude_seen: bool = True,
    workers: int = 2,
    batch_size: int = 2048,
) -> int:
    """Answer a folder of Parquet files (columns as for ``genrec predict``) into another one; returns the rows written.

    Memory of a worker is bounded by ``batch_size`` requests, whatever the folder's size. Raises ``UserError`` when
    ``output`` is not empty.
    """
    data = _ray().data
    if not any(requests.glob("*.parquet")):
        raise UserError(f"{requests}: holds no .parquet file")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; name another folder")
    arguments = {"bundle": str(bundle), "k": k, "mode": mode, "exclude_seen": exclude_seen}
    table = data.read_parquet(str(requests.resolve()))
    answers = table.map_batches(
        _Predictor, fn_constructor_kwargs=arguments, batch_size=batch_size, batch_format="pyarrow", concurrency=workers
    )
    answers.write_parquet(str(output.resolve()))
    return pl.scan_parquet(str(output / "*.parquet")).select(pl.len()).collect().item()
