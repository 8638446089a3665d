"""Adapters on the Hugging Face Hub: pushing, pulling, listing."""
