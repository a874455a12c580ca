"""Kill ``genrec train`` at random moments of prepare, tokenize and train, run the same command again, and compare with
an undisturbed run.

    python scripts/bench/kill.py --kills 200 --seed 1

A run is killed (SIGKILL) up to ``--per-run`` times and each time started again with the same command, then left to end.
Its dataset,
semantic IDs, co-occurrence tables, weights, fusion and curves must equal, byte for byte, those of a run that nobody
killed, and nothing may be left
beside them. A third of the kills is meant for each stage, uniformly over the seconds it takes; the table says where
they really fell.
Ends with code 1 when a run differs. Everything is simulated; no file outside ``--keep`` (a temporary folder) is
touched.

The undisturbed run is the plain command. The others are children forked from a process that has imported the program:
importing takes
longer than the whole run, and nothing is at stake while it lasts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

STAGES = ("prepare", "tokenize", "train")
COMPARED = ("dataset", "semantic_ids", "model", "model_refit", "candidate_features", "reranker")
CONFIG = """
name: run
output: {output}
data: {{reader: simulator, options: {{n_users: {users}, n_items: 120, n_events: {events}, n_categories: 8, n_brands: 6, seed: 1}}}}
text: {{dim: 16}}
model: {{dim: 16, heads: 2, layers: 1, max_length: 10}}
training: {{epochs: 2, decoder_epochs: 1, batch_size: 64, stride: 5, valid_requests: 100, accelerator: cpu, checkpoint_minutes: 0.001}}
decoding: {{beam: 10, dense: 20, cooccurrence: 20}}
evaluation: {{baselines: [popularity]}}
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "POLARS_MAX_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# What a run imports on its way; none of it starts a thread before it is used.
IMPORTED = ("cli", "pipeline", "training.fit", "semantic_ids.tokenize", "evaluation.protocol", "evaluation.report")


class Job:
    """One run folder and the command that fills it."""

    def __init__(self, folder: Path, name: str, options: argparse.Namespace):
        self.run, self.log = folder / name / "run", folder / f"{name}.log"
        self.config = folder / f"{name}.yaml"
        # Only the output differs between jobs, and no result depends on it.
        self.config.write_text(CONFIG.format(output=folder / name, users=options.users, events=options.events))

    def command(self) -> subprocess.Popen:
        """The plain command."""
        with self.log.open("w") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "genrec.cli", "train", str(self.config)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reached(self) -> int:
        """Which stage is under way, by the folders that end the stages: an index into ``STAGES``."""
        return next(
            (index for index, name in enumerate(COMPARED[:2]) if not (self.run / name).is_dir()), len(STAGES) - 1
        )

    def go(self, kill: tuple[str, float] | None = None, plain: bool = False) -> tuple[int, list[float], str]:
        """Run the command to its end, or until a stage has run for so many seconds.

        Returns the exit code (-9: killed), when each stage began in seconds since the start, and where it was when it
        ended.
        """
        begin, process = time.monotonic(), self.command() if plain else Forked(self)
        marks = [0.0]
        while process.poll() is None:
            now = time.monotonic() - begin
            while len(marks) <= self.reached():
                marks.append(now)
            if kill and len(marks) > (index := STAGES.index(kill[0])) and now - marks[index] >= kill[1]:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # forked this moment: not yet a group of its own
                    os.kill(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.005)
        return process.returncode, [*marks, time.monotonic() - begin], self.place()

    def place(self) -> str:
        stage = STAGES[self.reached()]
        if stage != "train":
            return stage
        return next(
            (f"train, {name}" for name in ("model", "model_refit") if any(self.run.glob(f".{name}-*"))),
            "train, between fits",
        )

    def contents(self) -> dict[str, str]:
        """A digest of every file that the run made, less what holds a time, a path or a picture; and what is left
        beside them."""
        found = {}
        for name in COMPARED:
            for path in sorted((self.run / name).rglob("*")):
                if path.is_file() and path.name not in ("manifest.json", "config.json") and path.suffix != ".png":
                    found[str(path.relative_to(self.run))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found | {path.name: "left behind" for path in self.run.glob(".*")}


class Forked:
    """The command in a forked child, in a session of its own; what ``Job.go`` asks of a ``Popen``."""

    def __init__(self, job: Job):
        self.returncode: int | None = None
        job.log.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            self._work(job)

    @staticmethod
    def _work(job: Job) -> None:
        code = 1
        try:
            os.setsid()
            stream = os.open(job.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.argv = ["genrec", "train", str(job.config)]
            sys.modules["genrec.cli.main"].main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def disturb(
    job: Job, plan: list[str], lasts: dict[str, tuple[float, float]], draw: random.Random, fell: Counter
) -> tuple[list[str], str | None]:
    """Kill a job at each planned stage in turn. Returns what could not be done (it ended before), and what went
    wrong."""
    todo = sorted(plan, key=STAGES.index)
    while todo:
        stage = todo[0]
        code, _, place = job.go((stage, draw.uniform(*lasts[stage])))
        if code == 0:  # the machine is faster than when the stages were timed
            lasts[stage] = (0.8 * lasts[stage][0], 0.8 * lasts[stage][1])
            return todo, None
        if code != -signal.SIGKILL:
            return todo, f"ended with code {code}: {job.log.read_text(errors='replace')[-300:]}"
        fell[place] += 1
        todo.pop(0)
    return [], None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--users", type=int, default=120)
    parser.add_argument("--events", type=int, default=2_500)
    parser.add_argument("--keep", type=Path, default=None, help="folder to work in; a temporary one without it")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT  # before the imports, which read it
    for name in IMPORTED:
        importlib.import_module(f"genrec.{name}")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="genrec-kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        wrong = bench(folder, options)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(wrong))


def bench(folder: Path, options: argparse.Namespace) -> list[str]:
    """Kill, compare, print; what differed."""
    draw, fell, wrong = random.Random(options.seed), Counter(), []
    reference, again = (Job(folder, name, options) for name in ("undisturbed", "forked"))
    code, _, _ = reference.go(plain=True)
    code_again, marks, _ = again.go()
    wanted = reference.contents()
    if code or code_again or again.contents() != wanted:
        raise SystemExit(
            f"the undisturbed runs failed or differ:\n{reference.log.read_text()[-3000:]}\n{again.log.read_text()[-3000:]}"
        )
    lasts = {stage: (0.0, end - begin) for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False)}
    print("undisturbed: " + ", ".join(f"{stage} {end:.1f} s" for stage, (_, end) in lasts.items()), flush=True)
    plan = [STAGES[index % 3] for index in range(options.kills)]
    draw.shuffle(plan)
    runs = 0
    while plan:
        job, runs = Job(folder, f"run-{runs}", options), runs + 1
        mine, plan = plan[: options.per_run], plan[options.per_run :]
        undone, problem = disturb(job, mine, lasts, draw, fell)
        plan += undone if problem is None else []
        if problem is None:
            code, _, _ = job.go()
            found = job.contents()
            if code:
                problem = f"ended with code {code}: {job.log.read_text(errors='replace')[-300:]}"
            elif found != wanted:
                problem = "differs in " + ", ".join(
                    sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
                )
        if problem:
            wrong.append(f"run {runs}: {problem}")
        print(
            f"run {runs}: {sum(fell.values())} kills so far, {'as undisturbed' if problem is None else problem}",
            flush=True,
        )
        shutil.rmtree(job.run.parent, ignore_errors=True)
    print(f"\n{'killed in':<22}{'kills':>6}")
    for name, count in sorted(fell.items()):
        print(f"{name:<22}{count:>6}")
    print(
        f"{'all':<22}{sum(fell.values()):>6}\nruns: {runs}, equal to the undisturbed one, byte for byte: {runs - len(wrong)}"
    )
    return wrong


if __name__ == "__main__":
    main()
