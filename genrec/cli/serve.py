"""The verbs of a server and its store: ``serve``, ``export-events``, ``backup-events`` and ``trim-events``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from genrec.cli.arguments import Ray
from genrec.console import console
from genrec.errors import UserError

Events = Annotated[str | None, typer.Option(help="Event store: a file or redis://...; default BUNDLE.events.sqlite.")]


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by genrec export, or a run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Keys, one per line, as KEY or ROLE KEY (read, write, admin); read again when changed."),
    ] = None,
    without_keys: Annotated[bool, typer.Option("--without-keys", help="Let others in without a key.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may name; repeat for several.")
    ] = None,
    events: Events = None,
    canary: Annotated[Path | None, typer.Option(help="A second bundle, which answers some of the users.")] = None,
    canary_weight: Annotated[float, typer.Option(help="Fraction of the users that the canary answers.")] = 0.1,
    exploration: Annotated[
        float, typer.Option(help="Fraction of list slots that are drawn; answers then state propensities.")
    ] = 0.0,
    exploration_temperature: Annotated[float, typer.Option(help="Of the softmax they are drawn by.")] = 1.0,
    traces: Annotated[bool, typer.Option("--traces", help="Send OpenTelemetry traces (OTEL_* variables).")] = False,
    max_batch: Annotated[int, typer.Option(help="Requests answered in one pass; 1 switches batching off.")] = 64,
    batch_wait_ms: Annotated[float, typer.Option(help="A batch starts when no more came for so long.")] = 1.0,
    queue: Annotated[int, typer.Option(help="Requests that may wait; one more gets 429.")] = 512,
    time_budget_ms: Annotated[float, typer.Option(help="An answer that takes longer is a 504.")] = 2000.0,
    max_body_bytes: Annotated[int, typer.Option(help="Largest body.")] = 4_194_304,
    max_depth: Annotated[int, typer.Option(help="Deepest nesting of a body.")] = 16,
    header_timeout_ms: Annotated[
        float, typer.Option(help="Time a connection has to send the head of a request.")
    ] = 10_000.0,
    connections: Annotated[int, typer.Option(help="Open connections; one more is refused.")] = 1000,
    drain_s: Annotated[int, typer.Option(help="Seconds that taken requests have at a stop.")] = 20,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0: one fewer than there are cores.")] = 0,
    ray: Ray = None,
    replicas: Annotated[int, typer.Option(help="With --ray: servers that share the requests.")] = 2,
) -> None:
    """Answer over HTTP: /v1/recommend, /v1/search, ... and a page to try it at /. SIGHUP reads the bundle again."""
    try:
        from genrec.serving.app import serve as answer
    except ModuleNotFoundError as error:
        raise UserError(f"genrec serve needs the package '{error.name}'; install: pip install '.[serve]'") from error
    from genrec.serving.settings import ServeSettings

    settings = ServeSettings(
        bundle, host, port, api_key_file, events, max_batch, batch_wait_ms, queue, time_budget_ms,
        max_body_bytes=max_body_bytes, max_depth=max_depth, header_timeout_ms=header_timeout_ms,
        connections=connections, drain_s=drain_s, threads=threads, hosts=tuple(allow_host or ()),
        without_keys=without_keys, canary=canary, canary_weight=canary_weight, traces=traces,
        exploration=exploration, exploration_temperature=exploration_temperature,
    )  # fmt: skip
    if ray is None:
        return answer(settings)
    from genrec.serving.cluster import serve_on_ray

    serve_on_ray(settings, ray, replicas)


def export_events(
    bundle: Annotated[Path, typer.Argument(help="The bundle that was served; its store is BUNDLE.events.sqlite.")],
    output: Annotated[Path, typer.Option(help="Folder for events.parquet and impressions.parquet.")],
    events: Events = None,
) -> None:
    """Write a server's events and impressions as a log, which genrec update adds to the run."""
    from genrec.data.dataset import Dataset
    from genrec.serving.export import write_events
    from genrec.serving.settings import ServeSettings

    chain = Dataset(bundle / "dataset").actions_chain
    counts = write_events(ServeSettings(bundle, events=events).store_path, output, chain)
    console.print(f"{output}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()), highlight=False)


def backup_events(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is served; its store is BUNDLE.events.sqlite.")],
    output: Annotated[Path, typer.Option(help="File for the copy; an older one is replaced.")],
    events: Events = None,
) -> None:
    """Copy a server's store while it runs: events, impressions, item changes and erasures. Serve it with --events."""
    store = _store(bundle, events)
    store.backup(output)
    store.close()
    console.print(f"{output}: {output.stat().st_size:,} bytes", highlight=False)


def trim_events(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is served; its store is BUNDLE.events.sqlite.")],
    days: Annotated[float, typer.Option(help="Older events and impressions are deleted.")],
    events: Events = None,
) -> None:
    """Delete a store's old events and impressions while the server runs; item changes and erasures stay."""
    if not days >= 0:
        raise UserError(f"--days: must not be below 0, is {days}")
    store = _store(bundle, events)
    removed = store.trim(int(time.time() - 86_400 * days))
    store.close()
    console.print(f"deleted {removed[0]:,} events and {removed[1]:,} impressions", highlight=False)


def _store(bundle: Path, events: str | None):
    from genrec.serving.settings import ServeSettings
    from genrec.serving.stores import existing_store

    return existing_store(ServeSettings(bundle, events=events).store_path)
