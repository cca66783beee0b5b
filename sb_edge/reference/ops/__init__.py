"""Operators of the reference implementation: gated linear attention and window attention."""
