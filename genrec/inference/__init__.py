"""Answers in Python: Recommender, requests, catalogue snapshots, explanations, bundles."""
