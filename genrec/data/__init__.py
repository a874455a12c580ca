"""From logs to a prepared dataset: contract, readers, preparation, sequences, simulator."""
