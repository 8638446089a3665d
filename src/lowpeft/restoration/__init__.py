"""Tools for image restoration: images, metrics, data, inference, evaluation, attribution and training."""
