"""Continue a prompt with the built-in model."""

from sb_edge import load, stream_generate

with load("default", ctx_size=1024) as model:
    for piece in stream_generate(model, "The lighthouse stood on a rock, and", max_tokens=24):
        print(piece, end="", flush=True)
