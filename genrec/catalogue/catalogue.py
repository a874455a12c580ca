"""What later rooms know of the items: text vectors, codes and the trie over them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie


@dataclass
class Catalogue:
    """What the network knows of the items before training: text (n_items, text_dim) float32, codes (n_items, levels), the trie."""

    text: Tensor
    codes: Tensor
    trie: CatalogueTrie

    @property
    def n_items(self) -> int:
        return self.codes.shape[0]
