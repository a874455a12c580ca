"""More than one machine, by Ray (extra ``genrec[ray]``): ``genrec serve --ray`` and ``genrec predict --ray``.

Replicas run on Ray Serve, batch prediction on Ray Data. Replicas share users' events through their store: a Redis
server across machines, one SQLite file on one machine. They see each other's item changes as servers on one store do.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from genrec.errors import UserError
from genrec.serving.logs import log
from genrec.serving.settings import ServeSettings

READING_CPUS = 1  # CPUs of a cluster that read requests and write answers while workers answer


def _ray():
    try:
        import ray
        import ray.data
        import ray.serve
    except ImportError:
        raise UserError("replicas and batch inference on a cluster need: pip install '.[ray]'") from None
    return ray


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address``, or with one of this machine for ``local``.

    A cluster that was running before is left running. Raises ``UserError`` where there is none.
    """
    ray = _ray()
    if ray.is_initialized():  # by the caller, who also ends it
        yield ray
        return
    try:
        options = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--ray: no cluster at '{address}' ({reason}); give 'local', 'auto' or HOST:PORT") from error
    try:
        yield ray
    finally:
        ray.shutdown()


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

    def __init__(self, bundle: str, fitted_on: str | None, k: int, mode: str, exclude_seen: bool):
        from genrec.inference.recommender import Recommender

        self.model, self.options = Recommender.load(bundle, fitted_on), (k, mode, exclude_seen)

    def __call__(self, batch: Any) -> Any:
        from genrec.inference.predict import predictions, request_table

        table, histories = request_table(pl.DataFrame(pl.from_arrow(batch)), "requests")
        return predictions(self.model, table, histories, *self.options).to_arrow()


def predict_folder(
    bundle: Path,
    requests: Path,
    output: Path,
    k: int = 100,
    mode: str = "fused",
    exclude_seen: bool = True,
    workers: int = 0,
    batch_size: int = 2048,
    fitted_on: str | None = None,
    address: str = "local",
) -> int:
    """Answer Parquet files of requests (columns as for ``genrec predict``) into a folder; returns the rows written.

    ``requests`` is a folder or one file. ``workers`` hold a model and a CPU each; 0 takes what the cluster at
    ``address`` has, less one CPU for reading and writing. Memory of a worker is bounded by ``batch_size`` requests,
    whatever the folder's size. Raises ``UserError`` when ``output`` is not empty.
    """
    if workers < 0:
        raise UserError(f"--workers: must not be below 0, is {workers}")
    files = [requests] if requests.is_file() else sorted(requests.glob("*.parquet"))
    if not files:
        raise UserError(f"--requests: {requests} is no Parquet file and holds none")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"--output: {output} is not an empty folder; with --ray, answers are a folder of Parquet files")
    arguments = {
        "bundle": str(bundle.resolve()),
        "fitted_on": fitted_on,
        "k": k,
        "mode": mode,
        "exclude_seen": exclude_seen,
    }
    with cluster(address) as ray:
        cpus = float(ray.cluster_resources().get("CPU", 1))
        workers = workers or max(int(cpus) - READING_CPUS, 1)
        # With too few CPUs a worker takes a fraction of one, so that reading goes on.
        fraction = min(1.0, max(cpus - READING_CPUS, cpus / 2) / workers)
        table = ray.data.read_parquet([str(file.resolve()) for file in files])
        answers = table.map_batches(
            _Predictor,
            fn_constructor_kwargs=arguments,
            batch_size=batch_size,
            batch_format="pyarrow",
            num_cpus=fraction,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        answers.write_parquet(str(output.resolve()))
    return pl.scan_parquet(str(output / "*.parquet")).select(pl.len()).collect().item()


def serve_on_ray(settings: ServeSettings, address: str, replicas: int) -> None:
    """Start ``replicas`` behind Ray Serve's proxy at ``host`` and ``port``, and stop them at SIGINT or SIGTERM."""
    stopped = threading.Event()
    with cluster(address) as ray:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, lambda *_: stopped.set())
        cpus = min(1.0, float(ray.cluster_resources().get("CPU", 1)) / (replicas + 1))
        ray.serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            ray.serve.run(application(settings, replicas, cpus))
            log.info("serving on Ray", extra={"fields": {"replicas": replicas, "port": settings.port}})
            stopped.wait()
        finally:
            ray.serve.shutdown()
