"""Every public data set of a folder read whole by its reader: rows accounted for, and the counts beside the published
ones.

    python scripts/bench/published.py FOLDER

FOLDER holds the data sets in their original files, one folder each (``amazon-beauty``, ``kuairand-pure``, ...); missing
ones are passed over.
A row read is kept (event, item, user, judgment, impression row) or left out by a named rule or quarantined. Ends with
code 1 when a count
differs from the published one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from genrec.data.readers import read_log


def counts(reader: str, path: Path) -> Counter:
    """What the parts of a log hold, added up; distinct ids of its events (``active_users``, ``seen_items``) and actions
    by name."""
    total, users, items = Counter(), set(), set()
    for part in read_log(reader, path):
        total["rows"] += part.rows_read
        total["left_out"] += sum(part.filtered.values())
        for kind in ("events", "items", "users", "judgments", "impressions", "quarantine"):
            table = getattr(part, kind)
            total[kind] += 0 if table is None else table.height
        users.update(part.events["user_id"].unique())
        items.update(part.events["item_id"].unique())
        total.update(part.events["action"].drop_nulls().to_list())
    return total + Counter(active_users=len(users), seen_items=len(items))


# Data set: reader and the published counts (data/README.md says where rows are people or requests).
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "amazon-beauty": ("amazon-2014", {"events": 198_502, "active_users": 22_363, "seen_items": 12_101}),
    "movielens-100k": ("movielens", {"events": 100_000, "active_users": 943, "seen_items": 1_682}),
    "movielens-latest-small": ("movielens", {"events": 100_836, "active_users": 610, "seen_items": 9_724}),
    "kuairand-pure": ("kuairand", {"impressions": 228_329, "items": 7_583, "users": 27_285}),
    "trivago-2019-100k": ("trivago", {"rows": 100_003, "clickout": 13_597}),
    "amazon-cellphones-search": ("product-search", {"events": 174_087 + 667, "active_users": 27_879, "items": 10_429}),
    "esci-us-sample": ("esci", {"judgments": 6_678, "items": 6_764}),
    "kuaisearch-demo": ("kuaisearch", {"rows": 1_000, "users": 200, "judgments": 200}),
    "jdsearch-sample": ("jdsearch", {"active_users": 3, "items": 409}),
    "qilin-sample": ("qilin", {"items": 10, "users": 10}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder, wrong = parser.parse_args().folder, 0
    print(
        "| data set | reader | rows read | events | items | users | judgments | impressions | left out | quarantined | published |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, (reader, published) in PUBLISHED.items():
        if not (folder / name).is_dir():
            continue
        found = counts(reader, folder / name)
        differ = {what: (found[what], wanted) for what, wanted in published.items() if found[what] != wanted}
        wrong += bool(differ)
        columns = [
            f"{found[kind]:,}"
            for kind in ("rows", "events", "items", "users", "judgments", "impressions", "left_out", "quarantine")
        ]
        said = ", ".join(f"{wanted:,} {what.replace('_', ' ')}" for what, wanted in published.items())
        verdict = (
            "; ".join(f"{what} is {was:,}, not {wanted:,}" for what, (was, wanted) in differ.items())
            or f"equal: {said}"
        )
        print(f"| `{name}` | `{reader}` | {' | '.join(columns)} | {verdict} |", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
