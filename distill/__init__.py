"""Distillation of a SpikingBrain from a Transformer. Imported as sb_edge.distill."""

from __future__ import annotations

import importlib.util

if __name__ != "sb_edge.distill":
    raise ImportError(
        "import this package as sb_edge.distill (it is the folder distill/ of the repository, mapped there)"
    )

from sb_edge.util.errors import TrainingError


def require_training() -> None:
    """Say how to install what training needs, where it is missing.

    Raises:
        TrainingError: PyTorch or tokenizers is not installed.
    """
    for name in ("torch", "tokenizers", "markdownify"):
        if importlib.util.find_spec(name) is None:
            raise TrainingError(f"distillation needs {name}", hint="pip install 'sb-edge[distill]'")
