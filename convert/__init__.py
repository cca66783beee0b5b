"""Checkpoints to GGUF; transplant, upcycling and initialisation. Imported as sb_edge.convert."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

if __name__ != "sb_edge.convert":
    raise ImportError(
        "import this package as sb_edge.convert (it is the folder convert/ of the repository, mapped there)"
    )


class _CallablePackage(ModuleType):
    """This package, which is also the function `sb_edge.convert`, whichever of the two is imported first."""

    def __call__(
        self, checkpoint: str | Path, output: str | Path | None = None, *, outtype: str = "auto"
    ) -> list[Path]:
        """See `sb_edge.api.convert`."""
        from sb_edge.convert.convert import convert_checkpoint

        target = None if output is None else Path(output)
        return list(convert_checkpoint(Path(checkpoint), target, outtype=outtype).files)


sys.modules[__name__].__class__ = _CallablePackage
