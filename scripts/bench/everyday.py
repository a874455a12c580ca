"""Fifty everyday queries on a MovieLens run: the first five answers of each, for a person to judge.

    python scripts/bench/everyday.py RUN [--output FILE.json]

The queries were written down before the lexical side was changed and none was taken out afterwards. They are single
words, people's phrasing, typos, half-typed words and nonsense; no user, no history.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from genrec.inference.recommender import Recommender
from genrec.inference.requests import RecommendationRequest

QUERIES = {
    "one word": [
        "star", "alien", "batman", "godfather", "comedy", "horror", "dinosaur", "christmas", "dogs", "king", "love",
        "vampire", "western", "fargo",
    ],
    "people's phrasing": [
        "space adventure", "movies for kids", "romantic comedy", "the one with the shark", "disney cartoon",
        "star wars empire", "war drama", "film noir classics", "scary movie", "hitchcock birds", "1995 thriller",
        "musical for children",
    ],
    "typo": [
        "godfater", "starwars", "terminater", "jurasic park", "pulp ficton", "shawshenk redemption", "casablnca",
        "forest gump", "independance day", "toystory",
    ],
    "half-typed": ["termin", "star w", "toy st", "jurass", "silence of the la", "indiana jo", "braveh", "back to the fut"],
    "nonsense": ["xqzvkj", "flurbengash", "asdf qwer", "zzzzzz", "blorptang vek", "kjhgf"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, help="JSON of queries, flags and titles")
    options = parser.parse_args()
    recommender = Recommender.load(options.run)
    rows = []
    for kind, queries in QUERIES.items():
        asked = [RecommendationRequest(query=query, k=5, exclude_seen=False) for query in queries]
        for query, response in zip(queries, recommender.ask(asked), strict=True):
            row = {
                "kind": kind,
                "query": query,
                "no_match": response.no_match,
                "corrected": getattr(response, "corrected", None),
                "titles": [answer.title for answer in response.items],
            }
            rows.append(row)
            flag = " [no good match]" if row["no_match"] else ""
            corrected = f" -> {row['corrected']}" if row["corrected"] else ""
            print(f"{kind} | {query}{corrected}{flag} | " + " · ".join(str(title) for title in row["titles"]))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
