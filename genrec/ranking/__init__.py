"""Candidates of all sources, their features, and the re-ranker that orders them."""
