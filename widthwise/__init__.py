"""Hardware-aware latency prediction and channel-pruning plans for PyTorch CNNs."""
