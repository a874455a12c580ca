"""Constrained beam search, exact scoring, dense retrieval, fusion."""
