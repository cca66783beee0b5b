"""Which layers of the built-in base suffer least as untrained GLA layers? Prints perplexities, a few minutes.

The text is Python's own documentation, which comes with Python; it is not the text that the demo measures on.
"""

import pydoc_data.topics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sb_edge.bench.perplexity import perplexity
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.gguf_reader import read_header
from sb_edge.models import DEFAULT_GLA_LAYERS, resolve_gguf
from sb_edge.runtime.session import Model

TOPICS = (
    "assert",
    "compound",
    "conversions",
    "customization",
    "exceptions",
    "execmodel",
    "function",
    "naming",
)
TEXT = "\n\n".join(pydoc_data.topics.topics[name] for name in TOPICS if name in pydoc_data.topics.topics)
BASE = resolve_gguf("default-base")
N_LAYERS = int(read_header(BASE).metadata["llama.block_count"])


def measure(gla_layers: Sequence[int]) -> float:
    """Perplexity of the base with these layers replaced, in float16."""
    with tempfile.TemporaryDirectory() as scratch:
        transplant(BASE, Path(scratch, "student"), gla_layers=gla_layers, dtype="f16")
        convert_checkpoint(Path(scratch, "student"), Path(scratch, "student.gguf"), outtype="f16")
        with Model(Path(scratch, "student.gguf")) as model:
            return perplexity(model, TEXT, max_tokens=640).value


print(f"none            {measure([]):7.2f}", flush=True)
alone = {}
for layer in range(N_LAYERS):
    alone[layer] = measure([layer])
    print(f"{layer:<15} {alone[layer]:7.2f}", flush=True)
best = sorted(alone, key=lambda layer: alone[layer])
for count in (2, 4, 8, 15):
    print(f"best {count:<10} {measure(sorted(best[:count])):7.2f}", flush=True)
print(f"default model   {measure(DEFAULT_GLA_LAYERS):7.2f}  {DEFAULT_GLA_LAYERS}", flush=True)
print(f"even (the 7B's) {measure(range(0, N_LAYERS, 2)):7.2f}", flush=True)
