"""Strong simple models, run on the same split and shown in the same table as ours.

Recommendation: ``fit(train, n_items)`` then ``score(histories)``; search: ``fit(...)`` then ``score(queries or vectors)``. Every
``score`` returns (B, n_items) float32 for one chunk of requests and leaves masking to ``metrics.top_k``.
"""

from genrec.evaluation.baselines.cooccurrence import CooccurrenceTransition
from genrec.evaluation.baselines.item_knn import ItemKNN
from genrec.evaluation.baselines.popularity import Popularity
from genrec.evaluation.baselines.search import BM25, DenseText

__all__ = ["BM25", "CooccurrenceTransition", "DenseText", "ItemKNN", "Popularity"]
