"""Metrics, protocols, baselines, report."""
