"""Quantizing a GGUF with the llama-quantize of the engine's own tree."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sb_edge.arch.model_spikes import change_plan, check_plan
from sb_edge.arch.sparse_plan import check_sparse
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.engine import Engine, find_engine
from sb_edge.engine.process import run_tool
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.types import GGML_TYPES
from sb_edge.system.cpu import usable_cpus
from sb_edge.util.errors import GgufError, OutputError
from sb_edge.util.files import atomic_output, require_free_space, require_output
from sb_edge.util.progress import progress_bar

_TYPE_LINE = re.compile(r"^ *(?:\d+  or  )? *([A-Z][A-Z0-9_]*) *: +(.*)$")
_STEP = re.compile(r"^\[ *(\d+)/ *(\d+)\]")
_SIZE = re.compile(r"quant size +=? *([0-9.]+) MiB")
_CAUSE = re.compile(r"failed to quantize: (.*)")


COPY = "COPY"
"""llama-quantize's name for leaving the weights as they are."""


def quantization_types(engine: Engine | None = None) -> dict[str, str]:
    """The file types that llama-quantize offers, from its own table: name to description.

    Raises:
        EngineError: no engine.
    """
    _, lines = run_tool([(engine or find_engine()).tool("llama-quantize"), "--help"])
    start = next((n for n, line in enumerate(lines) if "allowed quantization types" in line), len(lines))
    return {entry[1]: entry[2].strip() for line in lines[start:] if (entry := _TYPE_LINE.match(line))}


def tensor_types() -> list[str]:
    """The ggml types that a single tensor may have (`Q6_K`)."""
    return [name for name, _, _ in GGML_TYPES.values()]


def quantize(
    source: Path,
    target: Path,
    qtype: str,
    *,
    imatrix: Path | None = None,
    n_threads: int | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    spike_k: float | None = None,
    spike_projections: Sequence[str] | None = None,
    finish: Callable[[Path], Any] | None = None,
    engine: Engine | None = None,
) -> Any:
    """Write `source` quantized to `target`, which appears only when complete.

    Args:
        source: a GGUF, or the first file of a split one.
        target: the file to write; an earlier one is replaced on success.
        qtype: a name out of `quantization_types`, in any case.
        imatrix: an importance matrix made by llama-imatrix; the very small types need one.
        n_threads: None: all CPUs.
        leave_output_tensor: keep output.weight as it is.
        pure: every tensor in the one type, no mixture.
        allow_requantize: accept tensors that are quantized already, at a loss.
        output_tensor_type: a ggml type for output.weight.
        token_embedding_type: a ggml type for token_embd.weight.
        spike_k: code the projections' inputs as spikes with this k (`arch.model_spikes.change_plan`); 0: none
            of them; None: as `source` does.
        spike_projections: the coded ones, out of `spike_plan.PROJECTIONS`; None: as `source`, or all.
        finish: called with the finished file under its temporary name, which it may change; where it raises,
            nothing is written.
        engine: None: `find_engine()`.

    Returns:
        What `finish` returned.

    Raises:
        GgufError: `source` or `imatrix` is damaged or unsuitable, or a type is unknown.
        SpikeError: k is not such a number, or the model has no such projection.
        OutputError: `target` cannot be written, or would replace `source`.
        EngineError: no engine.
    """
    engine = engine or find_engine()
    header = read_header(source)
    plan = change_plan(header, spike_k, spike_projections)
    if check_sparse(header) is not None and qtype.upper() != COPY:
        raise GgufError(
            "has a sparse layout, which belongs to its weights as they are",
            path=source,
            found=f"type {qtype}",
            expected=COPY,
            hint="quantize the file that it was made from",
        )
    _require_type("type", qtype, quantization_types(engine))
    for name, chosen in (("output tensor", output_tensor_type), ("token embedding", token_embedding_type)):
        if chosen is not None:
            _require_type(f"{name} type", chosen, tensor_types())
    if imatrix is not None and not imatrix.is_file():
        raise GgufError(
            "not found", path=imatrix, hint="make one with llama-imatrix, in bin/ of `sb-edge engine path`"
        )
    require_output(target, [source, *header.files])
    options: dict[str, str | bool | None] = {
        "--imatrix": None if imatrix is None else str(imatrix.absolute()),
        "--leave-output-tensor": leave_output_tensor,
        "--pure": pure,
        "--allow-requantize": allow_requantize,
        "--output-tensor-type": output_tensor_type,
        "--token-embedding-type": token_embedding_type,
    }
    job = _Job(engine, source, qtype, _arguments(options), n_threads)
    with atomic_output(target) as partial:
        partial.touch()  # A folder that cannot be written to is found here, with its reason.
        require_free_space(target.parent, job.result_size(), str(target))
        job.run(partial, target, len(header.tensors))
        if plan != check_plan(header):
            try:
                with_spike_plan(partial, partial, plan)
            except OutputError as error:  # says which temporary file
                raise OutputError(error.message, path=target, hint=error.hint) from error
        return None if finish is None else finish(partial)


def _arguments(options: dict[str, str | bool | None]) -> list[str]:
    arguments: list[str] = []
    for name, value in options.items():
        if value is True:
            arguments.append(name)
        elif value:
            arguments += [name, value]
    return arguments


def _require_type(what: str, found: str, known: Iterable[str]) -> None:
    names = list(known)
    if found.upper() not in {name.upper() for name in names}:
        raise GgufError(f"unknown {what}", found=repr(found), expected=f"one of {' '.join(names)}")


class _Job:
    """One call of llama-quantize; all but the output is fixed."""

    def __init__(
        self, engine: Engine, source: Path, qtype: str, options: list[str], n_threads: int | None
    ) -> None:
        self.tool = engine.tool("llama-quantize")
        # Absolute, because the tool takes a file name that begins with a digit for the number of a type.
        self.source = source.absolute()
        self.qtype = qtype.upper()
        self.options = options
        self.n_threads = str(n_threads or len(usable_cpus()))

    def result_size(self) -> int:
        """Bytes of tensor data that will be written; found without writing any."""
        status, lines = run_tool(
            [self.tool, "--dry-run", *self.options, self.source, self.qtype, self.n_threads]
        )
        if status != 0:
            raise self._error(status, lines)
        sizes = [float(found[1]) for line in lines if (found := _SIZE.search(line))]
        return int(sizes[-1] * 2**20) if sizes else 0

    def run(self, partial: Path, target: Path, n_tensors: int) -> None:
        """Write `partial`, which is to become `target`."""
        done = 0
        with progress_bar(f"quantizing to {self.qtype}", n_tensors) as advance:

            def on_line(line: str) -> None:
                nonlocal done
                if step := _STEP.match(line):
                    advance(int(step[1]) - done)
                    done = int(step[1])

            status, lines = run_tool(
                [self.tool, *self.options, self.source, partial.absolute(), self.qtype, self.n_threads],
                on_line=on_line,
            )
        if status == -signal.SIGXFSZ or any("iostream error" in line for line in lines):
            raise OutputError(
                "could not be written to its end",
                path=target,
                hint="free some space or choose another folder",
            )
        if status != 0:
            raise self._error(status, lines)

    def _error(self, status: int, lines: list[str]) -> GgufError:
        if status < 0:
            found = f"llama-quantize was ended by {signal.Signals(-status).name}"
        else:
            causes = [cause[1] for line in lines if (cause := _CAUSE.search(line))]
            named = [line for line in lines if re.search(r"error|fail|invalid|missing", line, re.IGNORECASE)]
            found = (causes or named or lines or [f"exit status {status}"])[-1]
        return GgufError(
            f"cannot be quantized to {self.qtype}", path=self.source, found=found, hint=_hint(found)
        )


def _hint(cause: str) -> str | None:
    if "requantizing" in cause:
        return "start from an F16 or F32 file, or allow the loss by --allow-requantize"
    if "imatrix" in cause or "importance matrix" in cause:
        return "give one that llama-imatrix made from this model, by --imatrix"
    return None
