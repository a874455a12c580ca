"""The items a model answers with, as the packages after this one see them."""

from __future__ import annotations

from torch import Tensor, nn

from genrec.catalogue.trie import CatalogueTrie


class Catalogue(nn.Module):
    """Text vectors (n_items, text_dim) float32, codes (n_items, levels) and trie of all items.

    Buffers, so that they move with the network; not persistent, as the tokenize folder saves them.
    """

    text: Tensor
    codes: Tensor
    trie: CatalogueTrie

    def __init__(self, text: Tensor, codes: Tensor, trie: CatalogueTrie):
        super().__init__()
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("codes", codes, persistent=False)
        self.trie = trie

    @property
    def n_items(self) -> int:
        """The number of items."""
        return self.codes.shape[0]

    def share(self) -> Catalogue:
        """Another module over the same tensors: moving one leaves the other where it is."""
        return Catalogue(self.text, self.codes, self.trie.share())
