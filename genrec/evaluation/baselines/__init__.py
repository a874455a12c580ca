"""Simple models, run on the same split and reported in the same table as ours.

Recommendation: ``fit(train, n_items, times)`` then ``score(histories)``; search: ``fit(...)`` then ``score(queries or
vectors)``. Every ``score`` returns (B, n_items) float32 for one chunk of requests and leaves masking to
``metrics.top_k``. ``search`` chooses their settings on validation; ``stack`` orders what they propose.
"""

from genrec.evaluation.baselines.dense_text import DenseText
from genrec.evaluation.baselines.item_knn import ItemKNN
from genrec.evaluation.baselines.popularity import Popularity
from genrec.evaluation.baselines.transitions import Transitions
from genrec.retrieval.als import ImplicitALS
from genrec.retrieval.ease import EASE

__all__ = ["EASE", "DenseText", "ImplicitALS", "ItemKNN", "Popularity", "Transitions"]
