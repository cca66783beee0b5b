"""A benchmark row: one measurement, under llama-bench's field names."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from sb_edge.arch import ARCH
from sb_edge.bench.rows.phone import Phone
from sb_edge.engine.machine import Machine

Fill = Literal["real", "synthetic", "fitted"]
"""`fitted`: the row is computed from measurements at other depths."""
TtftSource = Literal["measured", "fitted"]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RowKey(NamedTuple):
    """Identity of a measurement: content of the model, settings, machine and engine."""

    model_sha256: str
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    flash_attn: int
    n_prompt: int
    n_gen: int
    n_depth: int
    repetitions: int
    n_warmup: int
    fill: str
    machine_id: str
    engine_key: str


class Row(BaseModel):
    """One measurement: llama-bench's fields, then this project's.

    Sizes are in bytes, times in nanoseconds unless the name says otherwise, speeds (`_ts`) in tokens per
    second. docs/benchmarks.md describes every field.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    build_commit: str
    cpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: Count
    model_n_params: Count
    n_batch: Count
    n_ubatch: Count
    n_threads: Count
    type_k: str
    type_v: str
    flash_attn: int
    n_prompt: Count
    n_gen: Count
    n_depth: Count
    test_time: str
    avg_ns: Count
    stddev_ns: Count
    avg_ts: Finite
    stddev_ts: Finite
    samples_ns: tuple[Count, ...]
    samples_ts: tuple[Finite, ...]

    model: str
    label: str
    repetitions: Count
    n_warmup: Count = 1
    median_ts: Finite
    fill: Fill
    turns: str | None = None
    ttft_ns: Count | None = None
    ttft_source: TtftSource | None = None
    fit_depths: tuple[Count, ...] = ()
    fit_base_ns: Finite | None = None
    fit_slope_ns: Finite | None = None
    fit_residual: Finite | None = None
    n_ctx_train: Count
    kv_bytes: Count
    state_bytes: Count
    rss_bytes: Count | None
    bytes_per_token: Count | None
    read_bandwidth: Finite
    roofline_fraction: Finite | None
    cpu_mhz: Finite | None = None
    cpu_mhz_max: Finite | None = None
    temperature_c: Finite | None = None
    throttle_events: Count | None = None
    model_sha256: str
    machine_id: str
    engine_key: str
    machine: Machine | None = None
    phone: Phone | None = None

    @property
    def key(self) -> RowKey:
        """The identity of this measurement."""
        return RowKey(**{name: getattr(self, name) for name in RowKey._fields})

    @property
    def context_bytes(self) -> int:
        """Size of KV cache and recurrent state."""
        return self.kv_bytes + self.state_bytes

    @property
    def beyond_training(self) -> bool:
        """Whether positions exceed the model's training context, so that only the speed is meaningful."""
        return 0 < self.n_ctx_train < self.n_depth + self.n_prompt + self.n_gen

    @property
    def is_spikingbrain(self) -> bool:
        """Whether the model has this project's architecture; False for a baseline."""
        return self.model_type.startswith(ARCH)

    @property
    def is_prefill(self) -> bool:
        """Whether a prompt was timed; False for decoding."""
        return self.n_prompt > 0

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary in the order of the fields."""
        return self.model_dump(mode="json")
