"""Pre-trained networks: reading of checkpoints, lowpeft's implementation of EDT, conversions from other code."""
