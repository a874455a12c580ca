"""Retrieval that no gradient learns, from counts: co-occurring items and matching words. Evidence for the ranking, and strong baselines."""
