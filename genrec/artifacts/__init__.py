"""Atomic folders with manifests."""
