"""Lightning module, data module, fit and refit."""
