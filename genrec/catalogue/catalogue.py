"""The items a model answers with, as the packages after this one see them."""

from __future__ import annotations

from torch import Tensor, nn

from genrec.catalogue.trie import CatalogueTrie


class Catalogue(nn.Module):
    """Text vectors (n_items, text_dim) float32 or float16, codes (n_items, levels) and trie.

    The trie may lack the last items, the *pending* ones, which were added since it was made: the code search does not
    find these yet, everything else does. Buffers, so that they move with the network; not persistent, as the tokenize
    folder saves them.
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

    @property
    def n_pending(self) -> int:
        """Items at the end that the trie does not hold yet."""
        return self.n_items - self.trie.n_items

    def share(self) -> Catalogue:
        """Another module over the same tensors: moving one leaves the other where it is."""
        return Catalogue(self.text, self.codes, self.trie.share())
