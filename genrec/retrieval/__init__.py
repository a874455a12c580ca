"""Retrieval that no gradient learns, from counts: co-occurring items and matching words. CandidateFeatures for the ranking, and strong baselines."""
