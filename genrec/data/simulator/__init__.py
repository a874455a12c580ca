"""A made-up shop and feed with known preferences, for tests and load."""
