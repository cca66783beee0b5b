"""Tokenizers of checkpoints, as GGUF vocabularies."""
