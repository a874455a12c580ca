"""Semantic IDs: quantizers, collision resolution, quality report, catalogue trie."""
