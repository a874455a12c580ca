"""The network: embeddings, rotary positions, backbone, code decoder."""
