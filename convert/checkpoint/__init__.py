"""Hugging Face checkpoints: reading, writing, checking."""
