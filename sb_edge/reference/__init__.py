"""SpikingBrain in PyTorch: the computation that the engine is measured against.

`naive` is the oracle, `chunk` the same operator for long inputs, `model` the whole network. PyTorch is an
extra: nothing outside this package needs it.
"""

from __future__ import annotations

import importlib.util

from sb_edge.util.errors import ParityError


def require_torch() -> None:
    """Say how to install PyTorch where it is missing; importing this package's modules needs it.

    Raises:
        ParityError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ParityError("the reference needs PyTorch", hint="pip install 'sb-edge[reference]'")
