"""`sb-edge inspect`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from sb_edge.arch import ARCH
from sb_edge.arch.layer_map import recurrent_layers, vocabulary_size
from sb_edge.arch.model_check import read_model
from sb_edge.arch.model_spikes import check_plan
from sb_edge.arch.sparse_plan import check_sparse, sparse_values
from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import cache_type_option, json_option, model_argument, tokens_option
from sb_edge.cli.spike_options import coded_k
from sb_edge.models.registry import resolve_gguf
from sb_edge.util.errors import EngineError, printable
from sb_edge.util.output import emit, format_bytes
from sb_edge.util.table import Table, grid

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.gguf.reader import GgufHeader

MEMORY_PARTS = ("weights", "repacked", "kv", "state", "buffers", "engine")
FILE_TYPES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K "
    "IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - "
    "TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0"
)
"""llama.cpp's names of `general.file_type`, from 0 on; "-" where it has dropped one."""

LAYER_KINDS = {
    "G": "gated linear attention",
    "S": "sliding-window attention",
    "A": "attention",
    "C": "short convolution",
    "R": "RWKV's linear attention",
}


@click.command(cls=FileCommand)
@model_argument("file")
@tokens_option(
    "-c",
    "--ctx-size",
    "n_ctx",
    default=None,
    help="Forecast memory for a context of this size.",
)
@cache_type_option("k")
@cache_type_option("v")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(
    file: str, n_ctx: int | None, type_k: str, type_v: str, tensors: bool, json_target: str | None
) -> None:
    """Show a GGUF's architecture, layers, tensors and memory needs.

    FILE is a GGUF of any architecture (of a split one, the first part), or a built-in model.
    """
    header = read_model(resolve_gguf(file))
    document = describe(header, n_ctx, tensors, type_k, type_v)
    emit(document, json_target, lambda console: render(document, console))


def describe(
    header: GgufHeader, n_ctx: int | None, tensors: bool, type_k: str = "f16", type_v: str = "f16"
) -> dict[str, Any]:
    """What `sb-edge inspect --json` writes: sizes in bytes, `shape` in ggml's reverse, [out, in].

    Raises:
        GgufError: keys that the layers, the spikes or the memory follow from are wrong.
        SpikeError: a projection is said to spike that the model does not have.
    """
    metadata = header.metadata
    document: dict[str, Any] = {
        "files": [str(path) for path in header.files],
        "file_bytes": sum(Path(path).stat().st_size for path in header.files),
        "architecture": header.arch,
        "name": _text(metadata, "general.name"),
        "file_type": file_type_name(metadata.get("general.file_type")),
        "n_params": header.n_params - sparse_values(header),
        "vocabulary": {
            "model": _text(metadata, "tokenizer.ggml.model"),
            "pre": _text(metadata, "tokenizer.ggml.pre"),
            "size": vocabulary_size(header),
        },
        "chat_template": "tokenizer.chat_template" in metadata,
        "hyperparameters": _hyperparameters(header),
        "layers": None,
        "spiking": _spiking(header),
        "sparse": _sparse(header),
        "memory": None,
        "tensor_types": _by_type(header),
    }
    if f"{header.arch}.block_count" in metadata:
        letters = _layer_letters(header)
        document["layers"] = "".join(letters[recurrent] for recurrent in recurrent_layers(header))
    if n_ctx is not None:
        document["memory"] = _memory(header, n_ctx, type_k, type_v)
    if tensors:
        document["tensors"] = [
            {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape), "nbytes": tensor.nbytes}
            for tensor in header.tensors
        ]
    return document


def _memory(header: GgufHeader, n_ctx: int, type_k: str, type_v: str) -> dict[str, Any]:
    """The forecast, or why there is none."""
    from sb_edge.memory.forecast import EngineSettings, forecast

    try:
        need = forecast(header, n_ctx, EngineSettings(type_k, type_v))
    except EngineError as error:
        return {"context": n_ctx, "problem": str(error)}
    sizes = {name: getattr(need, name) for name in (*MEMORY_PARTS, "total")}
    return {"context": n_ctx, "type_k": type_k, "type_v": type_v, **sizes}


def _layer_letters(header: GgufHeader) -> dict[bool, str]:
    """By whether a layer is recurrent, its letter in `LAYER_KINDS`."""
    attention = "S" if header.integer("attention.sliding_window", 0) else "A"
    if header.integer("wkv.head_size", 0):
        return {True: "R", False: attention}
    return {True: "C" if header.integer("shortconv.l_cache", 0) else "G", False: attention}


def _spiking(header: GgufHeader) -> dict[str, Any] | None:
    """The spike plan; `layer_k` is [layer][projection], 0 where one is not coded, or None: `k` for all."""
    plan = check_plan(header)
    if plan is None:
        return None
    values = coded_k(plan) or [0.0]
    return {
        "k": plan.k,
        "k_min": min(values),
        "k_max": max(values),
        "projections": list(plan.projections),
        "layer_k": None if plan.layer_k is None else [list(row) for row in plan.layer_k],
        "query_k": plan.query_k,
        "kv_rounding": plan.kv_rounding,
    }


def _sparse(header: GgufHeader) -> dict[str, Any] | None:
    """The sparse layout: its projections by layer, with the mean of the dead zones of their inputs."""
    plan = check_sparse(header)
    if plan is None:
        return None
    return {
        "max_density": plan.max_density,
        "nbytes": sum(each.columns.nbytes + each.zones.nbytes for each in plan.projections),
        "projections": [
            {
                "layer": each.layer,
                "projection": each.name,
                "type": each.columns.type,
                "mean_zone": float(each.read_zones().mean(dtype="float64")),
            }
            for each in plan.projections
        ],
    }


def _text(metadata: dict[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _hyperparameters(header: GgufHeader) -> dict[str, Any]:
    """The architecture's keys without its name; lists and spikes are shown in words of their own."""
    prefix = f"{header.arch}."
    return {
        key.removeprefix(prefix): _plain(value)
        for key, value in header.metadata.items()
        if key.startswith(prefix)
        and not key.startswith((f"{prefix}spike.", f"{prefix}sparse."))
        and isinstance(value, int | float | str)
    }


def _plain(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_type(header: GgufHeader) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.nbytes
    return [{"type": name, "tensors": counts[name], "nbytes": size} for name, size in sizes.most_common()]


def file_type_name(number: object) -> str | None:
    """llama.cpp's name of `general.file_type`, such as "Q4_K_M"; None if the file does not say."""
    if not isinstance(number, int):
        return None
    names = FILE_TYPES.split()
    name = names[number] if 0 <= number < len(names) else "-"
    return f"unknown ({number})" if name == "-" else name


def render(document: dict[str, Any], console: Console) -> None:
    """Print `describe`'s document for a person; text from the file is escaped."""
    console.print(grid((printable(label), printable(value)) for label, value in _facts(document)))
    _print_tensors(document, console)


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    vocabulary = document["vocabulary"]
    absent = vocabulary["model"] in (None, "no_vocab", "none")
    tokens = "none" if absent else f"{vocabulary['model']} ({vocabulary['pre']})"
    files = document["files"]
    facts = [
        ("file", f"{files[0]} ({format_bytes(document['file_bytes'])}, {len(files)} part(s))"),
        ("name", str(document["name"])),
        ("architecture", document["architecture"]),
        ("file type", str(document["file_type"])),
        ("parameters", f"{document['n_params']:,}"),
        ("vocabulary", f"{tokens}, {vocabulary['size']:,} tokens"),
        ("chat template", "yes" if document["chat_template"] else "no"),
    ]
    if document["layers"] is not None:
        kinds = Counter(document["layers"])
        facts.append(("layers", document["layers"]))
        facts.append(
            ("", ", ".join(f"{kind} = {LAYER_KINDS[kind]} ({count})" for kind, count in kinds.items()))
        )
    if document["architecture"] == ARCH:
        facts += _spike_facts(document["spiking"])
        facts += _sparse_facts(document["sparse"])
    facts += [(key, str(value)) for key, value in document["hyperparameters"].items()]
    if document["memory"] is not None:
        need = document["memory"]
        if "problem" in need:
            return [*facts, ("memory", f"no forecast: {need['problem']}")]
        parts = ", ".join(f"{key} {format_bytes(need[key])}" for key in MEMORY_PARTS)
        facts.append((f"memory at {need['context']:,} tokens", f"{format_bytes(need['total'])}: {parts}"))
    return facts


def _spike_facts(spiking: dict[str, Any] | None) -> list[tuple[str, str]]:
    if spiking is None:
        return [("spikes", "none")]
    low, high = spiking["k_min"], spiking["k_max"]
    k = f"k = {low:.3g}" if low == high else f"k per projection, {low:.3g} to {high:.3g}"
    queries = f"k = {spiking['query_k']:g}" if spiking["query_k"] else "not coded"
    return [
        ("spikes", k),
        ("  coded inputs of", " ".join(spiking["projections"])),
        ("  queries (S layers)", queries),
        ("  K and V (S layers)", "rounded to INT8" if spiking["kv_rounding"] else "not rounded"),
    ]


def _sparse_facts(sparse: dict[str, Any] | None) -> list[tuple[str, str]]:
    if sparse is None:
        return [("sparse layout", "none")]
    zones: dict[str, list[float]] = {}
    for each in sparse["projections"]:
        zones.setdefault(each["projection"], []).append(each["mean_zone"])
    size = format_bytes(sparse["nbytes"])
    facts = [("sparse layout", f"{size}; dense above {sparse['max_density']:.0%} active channels")]
    for name, means in zones.items():
        facts.append((f"  {name}", f"{len(means)} layers, mean dead zone {fmean(means):.3g}"))
    return facts


def _print_tensors(document: dict[str, Any], console: Console) -> None:
    summary = Table("type", "tensors", "size")
    for row in document["tensor_types"]:
        summary.add(row["type"], str(row["tensors"]), format_bytes(row["nbytes"]))
    console.print(summary)
    for tensor in document.get("tensors", []):
        shape = "x".join(map(str, tensor["shape"]))
        size = format_bytes(tensor["nbytes"])
        line = f"{printable(tensor['name']):32} {tensor['type']:8} {shape:>16} {size:>10}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
