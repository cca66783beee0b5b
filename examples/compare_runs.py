"""Compare runs of `sb-edge distill` by the last measurement of each stage.  python compare_runs.py RUN ..."""

import json
import sys
from pathlib import Path

if not sys.argv[1:] or sys.argv[1].startswith("-"):
    sys.exit(__doc__)

KINDS = ("passkey", "dictionary", "facts")

print("| run | stage | tokens | held-out loss | with spikes | " + " | ".join(KINDS) + " |")
print("|---|---|---:|---:|---:|" + "---:|" * len(KINDS))
for run in sys.argv[1:]:
    record = json.loads((Path(run) / "record.json").read_text())
    for stage in record["stages"]:
        last = stage["measured"][-1]
        losses = (last.get(key) for key in ("losses", "spike_losses"))
        cells = ["" if loss is None else f"{sum(loss) / len(loss):.4f}" for loss in losses]
        cells += [f"{last['found'][kind]:.0%}" for kind in KINDS]
        print(f"| {Path(run).name} | {stage['name']} | {last['tokens']} | {' | '.join(cells)} |")
