"""The report's energy estimate of a spiking model, without and with reading the weights from DRAM.

Both are computed from published figures; neither is a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sb_edge.arch.sparse_plan import dense_tensors
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.traffic import weight_bytes
from sb_edge.runtime.spike_counters import SiteCounts
from sb_edge.util.output import json_fields, to_json

FP16_MAC_PJ = 1.5
INT8_MAC_PJ = 0.23
INT8_ADD_PJ = 0.03
"""45 nm, 0.9 V. Multiply and add of Horowitz, "Computing's energy problem", ISSCC 2014 (doi
10.1109/ISSCC.2014.6757323), figure 1.1.9: 1.1 + 0.4, 0.2 + 0.03 and 0.03 pJ; the report takes the same."""

ASSUMPTIONS = (
    "45 nm arithmetic (Horowitz, ISSCC 2014): FP16 MAC 1.5 pJ, INT8 MAC 0.23 pJ, INT8 add 0.03 pJ",
    "spiking MAC: one INT8 add per spike, bitwise coding: spikes per channel x 0.03 pJ",
    "idealised asynchronous chip: empty slots, coding, control, clock and leakage cost nothing",
    "compute alone: no weights, states or activations are moved",
    "weights: each byte is read from DRAM once per decoded token, batch size 1",
    "not included: attention scores, recurrent state, KV cache, norms, embedding lookup",
)


@dataclass(frozen=True)
class Dram:
    """A published energy of DRAM reads.

    Attributes:
        name: short name for tables.
        pj_per_bit: picojoules per bit.
        source: publication.
    """

    name: str
    pj_per_bit: float
    source: str


DRAMS = (
    Dram(
        "HBM2",
        3.92,
        "3.92 pJ/bit: O'Connor et al., Fine-Grained DRAM, MICRO 2017, doi 10.1145/3123939.3124545",
    ),
    Dram(
        "45 nm, low",
        1300 / 64,
        "1.3 nJ for 64 bits, the lower of 1.3 to 2.6: Horowitz, ISSCC 2014, doi 10.1109/ISSCC.2014.6757323",
    ),
    Dram("45 nm, high", 2600 / 64, "2.6 nJ for 64 bits, the upper of the same source"),
)


@dataclass(frozen=True)
class Method:
    """Energy of one token with one kind of arithmetic.

    Attributes:
        name: short name for tables.
        coded_pj: compute energy of the projections with coded inputs, pJ.
        other_pj: compute energy of the other matrices, pJ.
        weight_bytes: size of all matrices, bytes.
    """

    name: str
    coded_pj: float
    other_pj: float
    weight_bytes: int

    @property
    def compute_pj(self) -> float:
        """Compute energy of all matrices, pJ."""
        return self.coded_pj + self.other_pj

    def dram_pj(self, dram: Dram) -> float:
        """Energy of reading all weights once, pJ."""
        return 8 * self.weight_bytes * dram.pj_per_bit

    def total_pj(self, dram: Dram) -> float:
        """Compute energy and weight reads, pJ."""
        return self.compute_pj + self.dram_pj(dram)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the energies with each DRAM."""
        return json_fields(self) | {
            "dram_pj": {dram.name: self.dram_pj(dram) for dram in DRAMS},
            "total_pj": {dram.name: self.total_pj(dram) for dram in DRAMS},
        }


@dataclass(frozen=True)
class Energy:
    """Work and energy of one decoded token.

    Attributes:
        coded_macs: multiply-accumulates of the projections with coded inputs.
        other_macs: multiply-accumulates of all other matrices, mainly the output projection; never spiking.
        spikes: additions that replace `coded_macs`, bitwise coding.
        stored_bytes: size of the weights in this file.
    """

    coded_macs: int
    other_macs: int
    spikes: float
    stored_bytes: int

    @property
    def spikes_per_mac(self) -> float:
        """Spikes per channel, weighted with the number of outputs that use the channel."""
        return self.spikes / self.coded_macs

    @property
    def fp16(self) -> Method:
        """All matrices in FP16."""
        return self._method("FP16", FP16_MAC_PJ * self.coded_macs, FP16_MAC_PJ, 2)

    @property
    def int8(self) -> Method:
        """All matrices in INT8."""
        return self._method("INT8", INT8_MAC_PJ * self.coded_macs, INT8_MAC_PJ, 1)

    @property
    def spiking(self) -> Method:
        """The report's W8ASpike: INT8 weights, spiking coded projections, other matrices in INT8."""
        return self._method("spiking", INT8_ADD_PJ * self.spikes, INT8_MAC_PJ, 1)

    @property
    def stored(self) -> Method:
        """`spiking` with the weight size of this file."""
        spiking = self.spiking
        return Method("spiking, this file", spiking.coded_pj, spiking.other_pj, self.stored_bytes)

    @property
    def methods(self) -> tuple[Method, ...]:
        """All four methods."""
        return (self.fp16, self.int8, self.spiking, self.stored)

    def _method(self, name: str, coded_pj: float, other_mac_pj: float, bytes_per_weight: int) -> Method:
        weights = self.coded_macs + self.other_macs
        return Method(name, coded_pj, other_mac_pj * self.other_macs, bytes_per_weight * weights)

    def to_json(self) -> dict[str, Any]:
        """Picojoules and bytes per decoded token."""
        fp16, int8, spiking = self.fp16, self.int8, self.spiking
        return {
            **json_fields(self, "coded_macs", "other_macs", "spikes_per_mac"),
            "assumptions": list(ASSUMPTIONS),
            "dram": to_json(DRAMS),
            "methods": [
                {"coded_pj_per_mac": method.coded_pj / self.coded_macs, **method.to_json()}
                for method in self.methods
            ],
            "compute_alone": {
                "fp16_over_spiking": fp16.coded_pj / spiking.coded_pj,
                "int8_over_spiking": int8.coded_pj / spiking.coded_pj,
            },
            "with_weights_from_dram": {
                dram.name: {
                    "fp16_over_spiking": fp16.total_pj(dram) / spiking.total_pj(dram),
                    "int8_over_spiking": int8.total_pj(dram) / spiking.total_pj(dram),
                }
                for dram in DRAMS
            },
        }


def estimate_energy(header: GgufHeader, sites: Sequence[SiteCounts]) -> Energy:
    """Estimate the energy of one decoded token.

    Args:
        header: header of the model.
        sites: Spike counts of its coded inputs, at least one.
    """
    matrices = _matrices(header)
    coded_macs, spikes = 0, 0.0
    for site in sites:
        spikes_per_channel = site.bit_spikes / (site.channels * site.tokens)
        for projection in site.projections:
            macs = matrices[_tensor(matrices, site.layer, projection)]
            coded_macs += macs
            spikes += macs * spikes_per_channel
    return Energy(coded_macs, sum(matrices.values()) - coded_macs, spikes, weight_bytes(header))


def _matrices(header: GgufHeader) -> dict[str, int]:
    """Number of weights, equal to MACs per token, of every matrix in a token's products."""
    untied = any(tensor.name == "output.weight" for tensor in header.tensors)
    return {
        tensor.name: prod(tensor.shape)
        for tensor in dense_tensors(header)
        if len(tensor.shape) == 2 and not (untied and tensor.name == "token_embd.weight")
    }


def _tensor(matrices: dict[str, int], layer: int, projection: str) -> str:
    """Name of a projection's matrix; for a low-rank gate the first one, which has the coded input."""
    if projection != "ssm_f":
        return f"blk.{layer}.{projection}.weight"
    low_rank = f"blk.{layer}.ssm_f_a.weight"
    return low_rank if low_rank in matrices else f"blk.{layer}.ssm_f_b.weight"
