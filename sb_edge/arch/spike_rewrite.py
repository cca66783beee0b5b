"""Copy a GGUF with another spike plan. A separate module, so that readers of a plan import no GGUF writer."""

from __future__ import annotations

from pathlib import Path

from sb_edge.arch.spike_plan import SPIKE_KEYS, SpikePlan
from sb_edge.gguf.reader import read_layout
from sb_edge.gguf.rewrite import with_metadata


def with_spike_plan(source: Path, target: Path, plan: SpikePlan | None) -> None:
    """Copy a GGUF with its spike plan replaced by `plan`; None: removed.

    Raises:
        GgufError: as `with_metadata`.
        OutputError: the target cannot be written.
    """
    present = [key for key in read_layout(source).keys if key.startswith(SPIKE_KEYS)]
    values = plan.keys() if plan else {}
    with_metadata(source, target, values=values, removed=[key for key in present if key not in values])
