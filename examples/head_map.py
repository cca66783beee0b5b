"""A map by heads, and one by layers of the same size.  python head_map.py LAYERS.json SHARE

LAYERS.json is the result of `sb-edge layers BASE --heads 0-29 --grouped --json LAYERS.json`. Both maps keep
that share of all key/value heads as window attention, where limits cost most. Prints the options of `sb-edge
distill` for each.
"""

import json
import sys
from pathlib import Path
from typing import Any


def cost(entry: dict[str, Any]) -> float:
    """Nats that a token of an answer and one of plain text lose."""
    return entry["damage"] + entry["score"]["loss"] - measured["whole"]["loss"]


def listed(layers: list[int]) -> str:
    """Layers as `--gla-layers` takes them."""
    return ",".join(map(str, layers))


if not sys.argv[2:]:
    sys.exit(__doc__)
measured = json.loads(Path(sys.argv[1]).read_text())
layers = sorted(measured["layers"], key=cost, reverse=True)
heads = sorted(measured["heads"], key=cost, reverse=True)
per_layer = len(heads) // len(layers)
n_layers = round(float(sys.argv[2]) * len(layers))
by_layer = {entry["layer"] for entry in layers[:n_layers]}
by_head = {(entry["layer"], entry["head"]) for entry in heads[: n_layers * per_layer]}
whole = {layer for layer, _ in by_head if all((layer, head) in by_head for head in range(per_layer))}
single = sorted(pair for pair in by_head if pair[0] not in whole)
everything = range(len(layers))
kept = f" --keep-heads {','.join(f'{layer}:{head}' for layer, head in single)}" if single else ""
print("layers: --gla-layers", listed([layer for layer in everything if layer not in by_layer]))
print("heads:  --gla-layers", listed([layer for layer in everything if layer not in whole]) + kept)
