"""Adapter files, model cards, the Hugging Face Hub."""
