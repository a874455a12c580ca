"""Retrieval from counts, without gradients: co-occurring items and matching words.

The ranking reads its scores as candidate features; alone they are strong baselines.
"""
