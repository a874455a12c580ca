"""Text relevance (nDCG) on judged queries, with the text side alone: BM25, a text encoder, and both. No training on
queries.

    python scripts/text_relevance.py FOLDER [--reader esci] [text.encoder=tfidf ...]

FOLDER holds the log in the reader's layout; further arguments are config overrides.
"""

from __future__ import annotations

import argparse
import json
import sys

from genrec.config.load import load_config
from genrec.data.readers import read_log
from genrec.data.schema import join_parts
from genrec.errors import UserError
from genrec.evaluation.metrics import bootstrap_interval, paired_test
from genrec.evaluation.text_relevance import text_relevance, text_scorers
from genrec.text.factory import fit_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--reader", default="esci")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(None, options.overrides)
    log = join_parts(read_log(options.reader, options.folder, config.data.options))
    if log.judgments is None:
        raise UserError(f"{options.folder}: the log has no judgments; give judged queries, as reader esci reads them")
    encoder = fit_encoder(config.text, log.items, config.seed)
    results, notes = text_relevance(log.items, log.judgments, text_scorers(log.items, encoder))
    rows = []
    for name, metrics in results.items():
        low, high = bootstrap_interval(metrics["ndcg"], config.seed)
        rows.append(
            {
                "model": name,
                **{key: float(value.mean()) for key, value in metrics.items()},
                "ndcg_interval": [low, high],
            }
        )
    for name, metrics in results.items():
        if name != "BM25":
            mean, low, high, p = paired_test(metrics["ndcg"], results["BM25"]["ndcg"], config.seed)
            notes.append(f"{name} minus BM25, ndcg: {mean:+.4f} [{low:+.4f}, {high:+.4f}], p = {p:.3f}")
    sys.stdout.write(json.dumps({"notes": notes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
