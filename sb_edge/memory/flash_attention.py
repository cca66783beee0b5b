"""Whether the engine computes attention as flash attention."""

from __future__ import annotations

from typing import Literal

from sb_edge.arch.config import ARCH

FlashChoice = Literal["auto", "on", "off"]

FLASH_ATTN: dict[FlashChoice, int] = {"auto": -1, "off": 0, "on": 1}
"""llama.cpp's numbers for the choice, which are also those of llama-bench's `flash_attn` field."""


def uses_flash_attention(arch: str, choice: FlashChoice, type_k: str, type_v: str) -> bool:
    """What the choice comes to.

    Upstream's flash attention rounds a float32 cache to float16, so "auto" means "off" with one.
    SpikingBrain's window attention has a kernel of its own, which does not round.

    Args:
        arch: `general.architecture`.
        choice: the setting.
        type_k: ggml type of the cached keys.
        type_v: ggml type of the cached values.
    """
    return choice == "on" or (choice == "auto" and (arch == ARCH or "f32" not in (type_k, type_v)))
