"""Constrained generation of semantic IDs: beam search, exact search, sampling."""
