"""Settings: typed, bounded, loaded from YAML."""
