"""How does quality fall with the number of GLA layers?  python layer_curve.py RUN [CURVE.png]

RUN is a finished `sb-edge distill default-base -o RUN --stages layers`: each layer was trained alone, so that
any may be GLA in a student. Those whose outputs come nearest to the base's are taken first.
"""

import json
import sys
import tempfile
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.evaluate.perplexity import evaluation_texts
from sb_edge.evaluate.quality import compare_quality
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantize
from sb_edge.runtime.session import Model
from sb_edge.util.plot import PAPER, caption, dress, write_figure

if not sys.argv[1:] or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
run = Path(sys.argv[1])
base = resolve_gguf("default-base")
record = json.loads((run / "record.json").read_text())
layers = record["settings"]["gla_layers"]
errors = dict(zip(layers, record["stages"][0]["curve"][-1]["losses"], strict=True))
ranked = sorted(layers, key=lambda layer: errors[layer])

print("| GLA layers | perplexity over the base's | KL, nats | which |\n|---|---|---|---|")
counts, ratios = [], []
for count in sorted({1, *range(3, len(ranked), 3), len(ranked)}):
    chosen = sorted(ranked[:count])
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, plain, small = (Path(scratch, name) for name in ("student", "f16.gguf", "q8_0.gguf"))
        transplant(base, checkpoint, trained=run / "trained.gguf", gla_layers=chosen, dtype="f16")
        convert_checkpoint(checkpoint, plain, outtype="f16")
        quantize(plain, small, "Q8_0")
        text = evaluation_texts()["prose"]
        with Model(small) as model, Model(base) as teacher:
            found = compare_quality(model, teacher, text, "prose", max_tokens=8192, context=2048)
    counts.append(count)
    ratios.append(found.ratio)
    print(f"| {count} | {found.ratio:.3f} | {found.kl:.3f} | {','.join(map(str, chosen))} |", flush=True)


def draw(figure: Figure) -> None:
    """Ratio over count."""
    axes: Axes = figure.subplots()
    axes.plot(counts, ratios, color=PAPER.series[0], marker="o", lw=2)
    axes.set_xticks(counts)
    caption(
        axes,
        PAPER,
        "Quality over the number of GLA layers",
        "perplexity over the base's, held-out text, Q8_0",
    )
    dress(axes, PAPER, "GLA layers, trained alone")


if len(sys.argv) > 2:
    write_figure(Path(sys.argv[2]), (6.0, 4.0), draw)
