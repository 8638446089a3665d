"""Tools around adapted networks: images, metrics, data, inference, evaluation, attribution and training."""
