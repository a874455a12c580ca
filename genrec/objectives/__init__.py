"""One file per loss; pure functions on tensors."""
