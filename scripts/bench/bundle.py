"""Does a bundle answer as its run does? The same requests to both: the run here, a copy of the bundle in a process with
an empty environment.

    python scripts/bench/bundle.py RUN BUNDLE --requests 500

Prints how many lists are the same to the last id, and the greatest difference of a score; ends with code 1 where a list
differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ASK = """
import json, sys
import torch
from genrec import Recommender
torch.set_num_threads(1)
model, asked = Recommender.load(sys.argv[1]), json.load(open(sys.argv[2]))
answers = [model.recommend(history=one["history"], k=10) if one["query"] is None else model.search(one["query"], history=one["history"], k=10) for one in asked]
json.dump([[[item.item_id, item.score] for item in answer] for answer in answers], open(sys.argv[3], "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=500, help="half of them searches")
    options = parser.parse_args()
    import polars as pl

    items = pl.read_parquet(options.bundle / "dataset" / "items.parquet")
    draw, ids, titles = random.Random(0), items["item_id"].to_list(), items["title"].drop_nulls().to_list()
    asked = [
        {
            "history": draw.sample(ids, draw.randint(1, 20)),
            "query": " ".join(draw.choice(titles).split()[:3]) or "x" if place % 2 else None,
        }
        for place in range(options.requests)
    ]
    code = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "asked.json").write_text(json.dumps(asked))
        copy = shutil.copytree(options.bundle, folder / "elsewhere")
        for name, place, environment in (
            ("run", options.run.resolve(), None),
            ("bundle", copy, {"HOME": work, "PYTHONPATH": code, "OMP_NUM_THREADS": "1"}),
        ):
            command = [sys.executable, "-c", ASK, str(place), str(folder / "asked.json"), str(folder / f"{name}.json")]
            subprocess.run(command, check=True, env=environment, cwd=work)
        ours, theirs = (json.loads((folder / f"{name}.json").read_text()) for name in ("run", "bundle"))
    same = sum(
        [item for item, _ in one] == [item for item, _ in other] for one, other in zip(ours, theirs, strict=True)
    )
    gap = max(
        abs(a - b) for one, other in zip(ours, theirs, strict=True) for (_, a), (_, b) in zip(one, other, strict=True)
    )
    print(f"{same} of {len(asked)} lists are the same to the last id; greatest difference of a score {gap:.1e}")
    sys.exit(same != len(asked))


if __name__ == "__main__":
    main()
