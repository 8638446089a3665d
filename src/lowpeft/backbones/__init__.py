"""Pre-trained networks: open checkpoints, lowpeft's own EDT, and conversions from other code."""
