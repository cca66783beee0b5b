"""Print the sizes of SpikingBrain's published shapes as GGUF files, computed from their tensor tables."""

from math import prod

from sb_edge.arch.config import PRESETS
from sb_edge.arch.tensors import expected_tensors

BITS = {"BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5}

print("shape  parameters    ", "  ".join(f"{name:>8}" for name in BITS))
for preset in ("7b", "1b"):
    specs = expected_tensors(PRESETS[preset], attention_bias=preset == "7b").values()
    matrices = sum(prod(spec.shape) for spec in specs if len(spec.shape) > 1 and not spec.keep_f32)
    others = sum(prod(spec.shape) for spec in specs) - matrices
    sizes = [(matrices * bits / 8 + 4 * others) / 2**30 for bits in BITS.values()]
    print(f"{preset:5}  {matrices + others:>13,} ", "  ".join(f"{size:4.2f} GiB" for size in sizes))
