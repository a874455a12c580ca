"""The items a model answers with: text vectors, codes and the trie over them."""
