"""The report's energy estimate of a spiking model, and the same with the weights' way from DRAM included.

Both are arithmetic on published figures, not measurements of any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from sb_edge.arch.sparse_plan import dense_tensors
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.traffic import weight_bytes
from sb_edge.runtime.spike_counters import SiteCounts

FP16_MAC_PJ = 1.5
INT8_MAC_PJ = 0.23
INT8_ADD_PJ = 0.03
"""45 nm, 0.9 V. Multiply and add of Horowitz, "Computing's energy problem", ISSCC 2014 (doi
10.1109/ISSCC.2014.6757323), figure 1.1.9: 1.1 + 0.4, 0.2 + 0.03 and 0.03 pJ; the report takes the same."""

ASSUMPTIONS = (
    "arithmetic of a 45 nm chip (Horowitz, ISSCC 2014): FP16 MAC 1.5 pJ, INT8 MAC 0.23 pJ, INT8 add 0.03 pJ",
    "a spiking MAC is one INT8 add a spike, bitwise coding: spikes per channel x 0.03 pJ",
    "an idealised asynchronous chip: a silent slot costs nothing, nor do coding, control, clock or leakage",
    "compute alone moves no data: no weight, state or activation is fetched from anywhere",
    "weights: each byte read from DRAM once for every token decoded, batch of one",
    "left out of both: attention scores, recurrent state, KV cache, norms, embedding look-up",
)


@dataclass(frozen=True)
class Dram:
    """A published energy of fetching from DRAM.

    Attributes:
        name: a short name for tables.
        pj_per_bit: picojoules for one bit.
        source: the publication.
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
    """A way of computing one token.

    Attributes:
        name: a short name for tables.
        coded_pj: compute energy of the coded projections, pJ.
        other_pj: of the other matrices, pJ.
        weight_bytes: of all matrices, read once.
    """

    name: str
    coded_pj: float
    other_pj: float
    weight_bytes: int

    @property
    def compute_pj(self) -> float:
        """Of all matrices."""
        return self.coded_pj + self.other_pj

    def dram_pj(self, dram: Dram) -> float:
        """Fetching all weights once."""
        return 8 * self.weight_bytes * dram.pj_per_bit

    def total_pj(self, dram: Dram) -> float:
        """Compute and weights."""
        return self.compute_pj + self.dram_pj(dram)

    def document(self, coded_macs: int) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "coded_pj_per_mac": self.coded_pj / coded_macs,
            "coded_pj": self.coded_pj,
            "other_pj": self.other_pj,
            "weight_bytes": self.weight_bytes,
            "dram_pj": {dram.name: self.dram_pj(dram) for dram in DRAMS},
            "total_pj": {dram.name: self.total_pj(dram) for dram in DRAMS},
        }


@dataclass(frozen=True)
class Energy:
    """One decoded token.

    Attributes:
        coded_macs: multiply-accumulates of the projections whose inputs are coded.
        other_macs: of all other matrices; the output projection above all. No method computes them in spikes.
        spikes: additions that the coded projections take instead, bitwise coding.
        stored_bytes: of the weights as this file holds them.
    """

    coded_macs: int
    other_macs: int
    spikes: float
    stored_bytes: int

    @property
    def spikes_per_mac(self) -> float:
        """Spikes per channel, each channel weighted with the outputs that it feeds."""
        return self.spikes / self.coded_macs

    @property
    def fp16(self) -> Method:
        """Everything in FP16."""
        return self._method("FP16", FP16_MAC_PJ * self.coded_macs, FP16_MAC_PJ, 2)

    @property
    def int8(self) -> Method:
        """Everything in INT8."""
        return self._method("INT8", INT8_MAC_PJ * self.coded_macs, INT8_MAC_PJ, 1)

    @property
    def spiking(self) -> Method:
        """Coded projections in spikes, the others in INT8, INT8 weights: the report's W8ASpike."""
        return self._method("spiking", INT8_ADD_PJ * self.spikes, INT8_MAC_PJ, 1)

    @property
    def stored(self) -> Method:
        """As `spiking`, with the weights in the bytes that this file takes."""
        spiking = self.spiking
        return Method("spiking, this file", spiking.coded_pj, spiking.other_pj, self.stored_bytes)

    @property
    def methods(self) -> tuple[Method, ...]:
        return (self.fp16, self.int8, self.spiking, self.stored)

    def _method(self, name: str, coded_pj: float, other_mac_pj: float, bytes_per_weight: int) -> Method:
        weights = self.coded_macs + self.other_macs
        return Method(name, coded_pj, other_mac_pj * self.other_macs, bytes_per_weight * weights)

    def document(self) -> dict[str, Any]:
        """For JSON: picojoules and bytes for one decoded token."""
        fp16, int8, spiking = self.fp16, self.int8, self.spiking
        return {
            "coded_macs": self.coded_macs,
            "other_macs": self.other_macs,
            "spikes_per_mac": self.spikes_per_mac,
            "assumptions": list(ASSUMPTIONS),
            "dram": [asdict(dram) for dram in DRAMS],
            "methods": [method.document(self.coded_macs) for method in self.methods],
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
    """What one decoded token takes, with the spikes that `sites` counted.

    Args:
        header: the model's.
        sites: counts of its coded inputs, at least one of them.
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
    """Weights, which are also the MACs of a token, of every matrix that a token is multiplied with."""
    untied = any(tensor.name == "output.weight" for tensor in header.tensors)
    return {
        tensor.name: prod(tensor.shape)
        for tensor in dense_tensors(header)
        if len(tensor.shape) == 2 and not (untied and tensor.name == "token_embd.weight")
    }


def _tensor(matrices: dict[str, int], layer: int, projection: str) -> str:
    """The matrix of a projection; of a low-rank gate, the first, whose input is the coded one."""
    if projection != "ssm_f":
        return f"blk.{layer}.{projection}.weight"
    low_rank = f"blk.{layer}.ssm_f_a.weight"
    return low_rank if low_rank in matrices else f"blk.{layer}.ssm_f_b.weight"
