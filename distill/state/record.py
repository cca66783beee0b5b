"""The training record: command, data, settings and result."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sb_edge import __version__
from sb_edge.distill.settings import TrainingSettings
from sb_edge.distill.state.loss_plot import Curve, plot_losses
from sb_edge.distill.state.training_state import Progress
from sb_edge.distill.text.corpus import MANIFEST
from sb_edge.engine.machine import hardware
from sb_edge.util.files import atomic_output

POINTS = 200
"""Of a curve in the record: each the mean of as many steps as it takes."""


def write_record(
    folder: Path, settings: TrainingSettings, progress: Progress, command: str, text: Path
) -> None:
    """Write record.json and losses.png.

    Args:
        folder: where.
        settings: Settings of the run.
        progress: Progress of the finished run.
        command: that the user gave.
        text: folder of the text.

    Raises:
        OutputError: a file cannot be written.
    """
    manifest = json.loads((text / MANIFEST).read_text(encoding="utf-8"))
    curves: dict[str, Curve] = {stage.name: _points(progress.curves[stage.name]) for stage in settings.stages}
    document = {
        "command": command,
        "settings": settings.model_dump(mode="json"),
        "text": {
            key: manifest[key]
            for key in ("request", "tokens", "tokens_by_kind", "tokens_by_licence", "tokens_sha256")
        },
        "stages": [
            {
                "name": stage.name,
                "steps": len(progress.curves[stage.name]),
                "curve": curves[stage.name],
                "measured": progress.measured.get(stage.name, []),
            }
            for stage in settings.stages
        ],
        "sessions": progress.sessions,
        "hardware": hardware(),
        "versions": {
            "sb-edge": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
    with atomic_output(folder / "record.json") as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    plot_losses(folder / "losses.png", curves, progress.measured)


def _points(values: Tensor) -> list[dict[str, Any]]:
    """[steps, n] as at most `POINTS` means: {"step": last one's number, "losses": [n]}."""
    size = -(-len(values) // POINTS)
    return [
        {"step": min(at + size, len(values)), "losses": [round(float(x), 6) for x in part.mean(0)]}
        for at, part in zip(range(0, len(values), size), values.split(size), strict=True)
    ]
