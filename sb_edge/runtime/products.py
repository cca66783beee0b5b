"""A matrix times a vector as the engine computes it, by rows or by columns, apart from any model.

Many matrices of one shape are held, so that their weights come from memory as a model's do, not from a cache.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from sb_edge.runtime.binding import cpu_device, cpu_function, engine_library, ggml_base, typed
from sb_edge.util.errors import InferenceError

_PEAKS = {"Q4_0": -8, "Q8_0": 127}
"""The largest weight: one stands in every block of rows and of columns, so that both have a scale of 1."""

_OVERHEAD = 1 << 20
"""Bytes for the descriptions of tensors and graphs."""

_BUFFER_OFFSET = 8
"""Offset of the field `buffer` in ggml_tensor."""

ZONE = 1.0
SILENT, ACTIVE = 0.5, 2.0
"""Sizes of entries below and above the zone."""


class Products:
    """Equal matrices, by rows in the layout that the engine's dense kernels want and by columns.

    Args:
        kind: "Q4_0" or "Q8_0".
        n_outputs, n_inputs: Shape of a matrix, multiples of 32.
        copies: Number of matrices.
        n_threads: that compute.

    Raises:
        InferenceError: the engine has no sparse products.
    """

    def __init__(self, kind: str, n_outputs: int, n_inputs: int, copies: int, n_threads: int) -> None:
        base = _functions()
        self.shape = n_outputs, n_inputs
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self._backend = base.init_backend(0, None)
        set_threads = cpu_function("ggml_backend_set_n_threads", None, ctypes.c_void_p, ctypes.c_int)
        set_threads(self._backend, n_threads)
        number = GGMLQuantizationType[kind]
        buffers = self._dense_buffers(number)
        rows = self._tensors([(number, (n_inputs, n_outputs))] * copies, buffers)
        columns = self._tensors([(number, (n_outputs, n_inputs))] * copies)
        self._x, zones = self._tensors([(GGMLQuantizationType.F32, (n_inputs,))] * 2)
        self._outputs: dict[bool, list[int]] = {}
        self._graphs = {
            is_sparse: self._graph(is_sparse, rows, columns, zones) for is_sparse in (False, True)
        }
        weights = integer_weights(kind, n_outputs, n_inputs)
        for tensors, values in ((rows, weights), (columns, weights.T)):
            data = quantize(np.ascontiguousarray(values), number)
            for tensor in tensors:
                base.set(tensor, data)
        base.set(zones, np.full(n_inputs, ZONE, np.float32))

    def __enter__(self) -> Products:
        return self

    def __exit__(self, *_: object) -> None:
        base = ggml_base()
        for buffer in self._buffers:
            base.ggml_backend_buffer_free(ctypes.c_void_p(buffer))
        for context in self._contexts:
            base.ggml_free(ctypes.c_void_p(context))
        base.ggml_backend_free(ctypes.c_void_p(self._backend))

    def set_input(self, x: NDArray[np.float32]) -> None:
        """The vector, [n_inputs]; entries below `ZONE` are silent in the sparse product."""
        _functions().set(self._x, np.ascontiguousarray(x, np.float32))

    def nanoseconds(self, *, is_sparse: bool) -> int:
        """The time of all copies' products with the input."""
        start = time.perf_counter_ns()
        status = _functions().compute(self._backend, self._graphs[is_sparse])
        if status != 0:
            raise InferenceError("the engine could not compute a product", found=f"status {status}")
        return time.perf_counter_ns() - start

    def output(self, *, is_sparse: bool) -> NDArray[np.float32]:
        """The last product, [n_outputs]."""
        values = np.empty(self.shape[0], np.float32)
        tensor = self._outputs[is_sparse][-1]
        ggml_base().ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        return values

    def _dense_buffers(self, kind: GGMLQuantizationType) -> int | None:
        """The buffer type that the engine's loader would choose for a dense product; None: the usual one."""
        base = _functions()
        context = base.init(ctypes.c_size_t(_OVERHEAD))
        self._contexts.append(context)
        n_outputs, n_inputs = self.shape
        weight = base.new(context, int(kind), 2, (ctypes.c_int64 * 2)(n_inputs, n_outputs))
        x = base.new(context, int(GGMLQuantizationType.F32), 2, (ctypes.c_int64 * 2)(n_inputs, 512))
        product = base.dense(context, weight, x)
        for buffer_type in _extra_buffers():
            buffer = base.allocate_bytes(buffer_type, 0)
            self._buffers.append(buffer)
            ctypes.c_void_p.from_address(weight + _BUFFER_OFFSET).value = buffer
            if base.supports(cpu_device(), product):
                return buffer_type
        return None

    def _tensors(
        self, kinds: Sequence[tuple[GGMLQuantizationType, tuple[int, ...]]], buffer_type: int | None = None
    ) -> list[int]:
        base = _functions()
        context = base.init(ctypes.c_size_t(_OVERHEAD))
        self._contexts.append(context)
        tensors = [
            base.new(context, int(kind), len(shape), (ctypes.c_int64 * len(shape))(*shape))
            for kind, shape in kinds
        ]
        self._allocate(context, buffer_type)
        return tensors

    def _graph(self, is_sparse: bool, rows: list[int], columns: list[int], zones: int) -> int:
        base = _functions()
        context = base.init(ctypes.c_size_t(_OVERHEAD))
        self._contexts.append(context)
        graph = int(base.new_graph(context))
        outputs = [
            base.sparse(context, row, column, zones, self._x, 1.0)
            if is_sparse
            else base.dense(context, row, self._x)
            for row, column in zip(rows, columns, strict=True)
        ]
        for output in outputs:
            base.expand(graph, output)
        self._allocate(context)
        self._outputs[is_sparse] = outputs
        return graph

    def _allocate(self, context: int, buffer_type: int | None = None) -> None:
        base = _functions()
        kind = buffer_type or base.usual_buffers(self._backend)
        buffer = base.allocate(context, kind)
        if not buffer:
            raise InferenceError("the engine has no memory for the products")
        self._buffers.append(buffer)


def integer_weights(kind: str, n_outputs: int, n_inputs: int) -> NDArray[np.float32]:
    """Whole numbers that Q4_0 and Q8_0 hold exactly, by rows and by columns, [n_outputs, n_inputs]."""
    peak = _PEAKS[kind]
    rng = np.random.default_rng(n_outputs + n_inputs)
    weights = rng.integers(-abs(peak) + 1, abs(peak), (n_outputs, n_inputs)).astype(np.float32)
    places = np.add.outer(np.arange(n_outputs), np.arange(n_inputs))
    weights[places % 32 == 0] = peak
    return weights


def _extra_buffers() -> list[int]:
    """The engine's buffer types with layouts of their own, in the order in which it prefers them."""
    result = ctypes.POINTER(ctypes.c_void_p)
    found = cpu_function("ggml_backend_dev_get_extra_bufts", result, ctypes.c_void_p)(cpu_device())
    kinds: list[int] = []
    while found and (kind := found[len(kinds)]):
        kinds.append(int(kind))
    return kinds


class _InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Functions:
    """ggml's functions, with their types."""

    def __init__(self) -> None:
        pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        function = partial(typed, ggml_base())
        self._init = function("ggml_init", pointer, _InitParams)
        self.new = function("ggml_new_tensor", pointer, pointer, number, number, pointer)
        self.new_graph = function("ggml_new_graph", pointer, pointer)
        self.dense = function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        self.sparse = function(
            "sb_sparse_mul_mat", pointer, pointer, pointer, pointer, pointer, pointer, ctypes.c_float
        )
        self.expand = function("ggml_build_forward_expand", None, pointer, pointer)
        self.compute = function("ggml_backend_graph_compute", number, pointer, pointer)
        self.usual_buffers = function("ggml_backend_get_default_buffer_type", pointer, pointer)
        self.allocate = function("ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer)
        self.allocate_bytes = function("ggml_backend_buft_alloc_buffer", pointer, pointer, size)
        self.supports = function("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
        backend_arguments = (pointer, number, ctypes.c_char_p)
        self.init_backend = typed(engine_library("ggml"), "ggml_backend_init_by_type", *backend_arguments)
        self._set = function("ggml_backend_tensor_set", None, pointer, pointer, size, size)

    def init(self, size: ctypes.c_size_t) -> Any:
        """A context without memory for the tensors' data."""
        return self._init(_InitParams(size, None, True))

    def set(self, tensor: int, data: NDArray[Any]) -> None:
        """Set a tensor's data."""
        self._set(tensor, data.ctypes.data, 0, data.nbytes)


@cache
def _functions() -> _Functions:
    return _Functions()
