"""Which device the reference runs on: cpu, cuda, or a MetaX GPU, whose PyTorch presents itself as cuda.

What tells a MetaX GPU apart, as users report from real ones (github.com/LMCache/LMCache issue 3856,
MetaX-MACA/vLLM-metax issue 49): device names like "MetaX C500" and "MXC500", PyTorch versions like
"2.8.0+metax3.5.3.9", `torch.version.maca`; `torch.version.cuda` is set as well and tells nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

import torch

from sb_edge.util.errors import DeviceError

Vendor = Literal["MetaX", "NVIDIA", "AMD", "unknown"]

DEVICE_NAMES = "auto, cpu, cuda, cuda:N, metax, metax:N"


def classify_gpu(
    device_name: str,
    torch_version: str,
    environment: Mapping[str, str],
    *,
    maca: str | None = None,
    hip: str | None = None,
) -> Vendor:
    """Whose GPU stands behind PyTorch's "cuda".

    The name decides, then the build. MACA_PATH only says that MetaX's toolkit is installed: it counts last.

    Args:
        device_name: `torch.cuda.get_device_name()`.
        torch_version: `torch.__version__`.
        environment: environment variables.
        maca, hip: `torch.version.maca` and `.hip`, None where PyTorch was built without.
    """
    name = device_name.lower()
    if "metax" in name or re.match(r"mxc\d", name):
        return "MetaX"
    if re.search(r"nvidia|geforce|tesla|quadro", name):
        return "NVIDIA"
    if hip or "amd" in name.split():
        return "AMD"
    if maca or "metax" in torch_version or environment.get("MACA_PATH"):
        return "MetaX"
    return "unknown"


def gpu_vendor(index: int = 0) -> Vendor:
    """`classify_gpu` of this machine's GPU number `index`."""
    return classify_gpu(
        torch.cuda.get_device_name(index),
        str(torch.__version__),
        os.environ,
        maca=getattr(torch.version, "maca", None),
        hip=torch.version.hip,
    )


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name: "auto" takes the first GPU if there is one; "metax" is cuda on a MetaX GPU.

    Raises:
        DeviceError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"(cuda|metax)(?::(\d{1,3}))?", name)
    if match is None:
        raise DeviceError("no such device", item=name, expected=DEVICE_NAMES)
    index = int(match[2] or 0)
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= present:
        raise DeviceError(
            "is not present",
            item=name,
            found=f"{present} GPUs with PyTorch {torch.__version__}",
            hint="use --device cpu, or install the PyTorch build of the GPU's maker",
        )
    if match[1] == "metax" and gpu_vendor(index) != "MetaX":
        raise DeviceError(
            "is not a MetaX GPU",
            item=name,
            found=torch.cuda.get_device_name(index),
            hint=f"use --device cuda:{index}",
        )
    return torch.device("cuda", index)


def describe_device(device: torch.device) -> str:
    """One line for results: maker, name and PyTorch build."""
    if device.type != "cuda":
        return f"{device.type}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    index = device.index or 0
    name = torch.cuda.get_device_name(index)
    return f"{gpu_vendor(index)} GPU ({name}, cuda:{index}), PyTorch {torch.__version__}"
