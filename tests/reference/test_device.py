"""Telling whose GPU stands behind PyTorch's "cuda", and refusing devices that are not there."""

from __future__ import annotations

import pytest
import torch

from sb_edge.reference.device import classify_gpu, describe_device, pick_device
from sb_edge.util.errors import DeviceError

TOOLKIT = {"MACA_PATH": "/opt/maca"}


@pytest.mark.parametrize(
    ("name", "version", "environment", "maca", "hip", "vendor"),
    [
        ("MetaX C500", "2.8.0+metax3.5.3.9", TOOLKIT, "3.5.3.9", None, "MetaX"),
        ("MXC500", "2.6.0+cu116", {}, None, None, "MetaX"),
        ("Device 4001", "2.8.0+metax3.5.3.9", {}, None, None, "MetaX"),
        ("Device 4001", "2.8.0", {}, "3.5.3.9", None, "MetaX"),
        ("Device 4001", "2.8.0", TOOLKIT, None, None, "MetaX"),
        ("NVIDIA H100 80GB HBM3", "2.13.0+cu130", TOOLKIT, None, None, "NVIDIA"),
        ("Tesla T4", "2.13.0+cu130", {}, None, None, "NVIDIA"),
        ("AMD Instinct MI300X", "2.13.0+rocm7.0", {}, None, "7.0", "AMD"),
        ("Device 4001", "2.13.0", {}, None, None, "unknown"),
        ("Matrox MXCard", "2.13.0", {}, None, None, "unknown"),
    ],
)
def test_vendor_is_read_off_name_build_and_environment(
    name: str, version: str, environment: dict[str, str], maca: str | None, hip: str | None, vendor: str
) -> None:
    assert classify_gpu(name, version, environment, maca=maca, hip=hip) == vendor


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert describe_device(torch.device("cpu")).startswith("cpu, ")
    assert pick_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["cuda:99", "metax:99"])
def test_an_absent_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"{name}: is not present .*--device cpu"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:-1", "cuda:x", "", "metax0"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=r"no such device .*expected auto, cpu"):
        pick_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_is_described() -> None:
    device = pick_device("auto")
    assert torch.cuda.get_device_name(device) in describe_device(device)
