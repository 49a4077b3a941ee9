"""PyTorch training of every model a forward-compatible upgrade needs (extra `train`)."""
