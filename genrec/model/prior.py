"""The retrieval head's distribution as a prior of the code decoder.

The probability that the retrieval head gives to all items below a node is known before any code is generated. Its
logarithm, times a learnt weight that begins at one, is added to the logit of the node. Over the children of a node the
parent's own probability cancels, so before anything is learnt the decoder generates what retrieval finds, and its own
logits learn what differs. Items below a node are one range of ``trie.leaf_items``, so a subtree's probability is a
difference of running sums: two look-ups a node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import CatalogueTrie

PRIOR_CATALOGUE = 1 << 16  # items; of a larger catalogue the running sums would cost more than the search
INITIAL_SCALE = 0.2  # of the decoder's own logits beside a prior, so that it begins as the prior
MIN_MASS = 1e-12  # of a subtree: below it, differences of running sums have no digits left


@dataclass(frozen=True)
class RetrievalPrior:
    """What the prior adds to logits of nodes: ``weight`` () times the log of the ``mass`` of N requests below them.

    Row i of a look-up is request ``rows[i]`` of the mass; None: the rows are the requests.
    """

    mass: SubtreeMass
    weight: Tensor
    rows: Tensor | None = None

    @classmethod
    def of_logits(cls, trie: CatalogueTrie, logits: Tensor, weight: Tensor) -> RetrievalPrior:
        """From the retrieval head's logits (N, n_items), which get no gradient."""
        logits = logits.detach()[:, trie.leaf_items]
        return cls(SubtreeMass.of_mass(trie, logits.sub_(logits.logsumexp(1, keepdim=True)).exp_()), weight)

    def for_rows(self, nodes: Tensor) -> Tensor:
        """What nodes (N, M) gain, row by row: (N, M)."""
        rows = torch.arange(len(nodes), device=nodes.device) if self.rows is None else self.rows
        return self._gain(rows[:, None].expand_as(nodes), nodes)

    def for_range(self, start: int, stop: int) -> Tensor:
        """What all nodes from ``start`` to before ``stop`` gain: (N, stop - start)."""
        n = len(self.mass.running if self.rows is None else self.rows)
        return self.for_rows(torch.arange(start, stop, device=self.weight.device).expand(n, -1))

    def for_pairs(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """What nodes (M,) gain, each for one of the ``rows`` (M,): (M,)."""
        return self._gain(rows if self.rows is None else self.rows[rows], nodes)

    def take(self, rows: Tensor) -> RetrievalPrior:
        """The prior of some rows (K,), which may repeat; nothing is copied."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def _gain(self, rows: Tensor, nodes: Tensor) -> Tensor:
        # Padding behind the last node has no gain; a search hides it.
        mass = self.mass.below(rows, nodes.clamp(max=self.mass.trie.n_nodes - 1))
        return self.weight * mass.clamp(min=MIN_MASS).log().float()
