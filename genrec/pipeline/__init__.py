"""The stages of a run, each skipped while it is up to date."""
