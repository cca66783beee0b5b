"""GGUF files: reading, writing, rewriting."""
