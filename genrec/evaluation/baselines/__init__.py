"""Simple models, run on the same split and shown in the same table as ours; those that are also our evidence live in ``genrec.retrieval``.

Recommendation: ``fit(train, n_items)`` then ``score(histories)``; search: ``fit(...)`` then ``score(queries or vectors)``. Every
``score`` returns (B, n_items) float32 for one chunk of requests and leaves masking to ``metrics.top_k``.
"""

from genrec.evaluation.baselines.dense_text import DenseText
from genrec.evaluation.baselines.item_knn import ItemKNN
from genrec.evaluation.baselines.popularity import Popularity

__all__ = ["DenseText", "ItemKNN", "Popularity"]
