from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb_edge.cli.inspect import describe
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.types import GGML_TYPES
from sb_edge.util.errors import GgufError, SbEdgeError


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ARCH = key("general.architecture", 8, text("llama"))


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(
    keys: list[bytes], tensors: list[bytes] = (), data: bytes = b"", *, n_keys=None, n_tensors=None, version=3
) -> bytes:
    n_keys = len(keys) if n_keys is None else n_keys
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data if tensors else head


@pytest.fixture
def write(tmp_path):
    def write_file(content: bytes, name: str = "crafted.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def refusal(path: Path) -> str:
    """The refusal of a crafted file, found without allocating memory."""
    tracemalloc.start()
    try:
        with pytest.raises(GgufError) as caught:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_every_kind_of_value(write):
    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    keys = [ARCH, key("yes", 7, b"\1"), key("no", 7, b"\0"), key("text", 8, text("hé"))]
    keys += [key(f"n{kind}", kind, struct.pack("<" + code, 3)) for kind, code in numbers.items()]
    keys += [
        key(f"a{kind}", 9, array(kind, 2, struct.pack("<2" + code, 1, 2))) for kind, code in numbers.items()
    ]
    keys += [key("flags", 9, array(7, 3, b"\1\0\1")), key("texts", 9, array(8, 2, text("a") + text("")))]
    keys += [key("empty", 9, array(8, 0))]
    metadata = read_header(write(gguf_bytes(keys))).metadata
    assert metadata["yes"] is True and metadata["no"] is False and metadata["text"] == "hé"
    for kind in numbers:
        assert metadata[f"n{kind}"] == 3 and type(metadata[f"n{kind}"]) in (int, float)
        assert metadata[f"a{kind}"].tolist() == [1, 2]
    assert metadata["flags"].tolist() == [True, False, True]
    assert metadata["texts"] == ["a", ""] and metadata["empty"] == []


def test_tensors(write):
    tensors = [tensor("a", (4, 2), 1), tensor("b", (32,), 8, 32)]
    header = read_header(write(gguf_bytes([ARCH], tensors, bytes(66))))
    assert [(t.name, t.shape, t.type, t.nbytes) for t in header.tensors] == [
        ("a", (2, 4), "F16", 16),
        ("b", (32,), "Q8_0", 34),
    ]
    assert header.tensors[1].offset == header.tensors[0].offset + 32
    assert header.n_params == 40 and header.nbytes == 50


def test_alignment_from_the_file(write):
    keys = [ARCH, key("general.alignment", 4, struct.pack("<I", 64))]
    content = gguf_bytes(keys, [tensor("a"), tensor("b", offset=64)], bytes(160))
    header = read_header(write(content))
    assert [entry.offset % 64 for entry in header.tensors] == [0, 0]


def test_types_agree_with_gguf_py():
    for kind in gguf.GGMLQuantizationType:
        if kind.name != "Q8_1":  # PyPI's gguf 0.19.0 has a wrong size for it; no file holds this type
            assert GGML_TYPES[kind.value] == (kind.name, *gguf.GGML_QUANT_SIZES[kind])


@pytest.mark.engine
def test_types_are_the_engine_s():
    from sb_edge.engine import find_engine

    script = (
        "import json, gguf;"
        "print(json.dumps({kind.value: [kind.name, *size] for kind, size in gguf.GGML_QUANT_SIZES.items()}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(find_engine().prefix / "python")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert {int(number): tuple(entry) for number, entry in json.loads(done.stdout).items()} == GGML_TYPES


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(GgufError, match="not found"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="is a folder"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGML" + bytes(60), b"PK\3\4" + bytes(60), b"\x7fELF" + bytes(60)]
)
def test_not_a_gguf(write, content):
    assert "is not a GGUF file" in refusal(write(content))


HUGE = 2**63


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gguf_bytes([ARCH], version=1), "unsupported version (found 1"),
        (gguf_bytes([ARCH], version=4), "unsupported version (found 4"),
        (gguf_bytes([ARCH], version=3 << 24), "is big-endian"),
        (gguf_bytes([], n_keys=HUGE), "number of keys: is truncated or corrupt"),
        (gguf_bytes([], n_keys=2**64 - 1), "number of keys"),
        (gguf_bytes([], n_tensors=HUGE), "number of tensors"),
        (gguf_bytes([], n_keys=1) + bytes(25), "key 0: has no name"),
        (gguf_bytes([]), "general.architecture: has no architecture"),
        (gguf_bytes([key("general.architecture", 4, bytes(4))]), "general.architecture: has no architecture"),
        (gguf_bytes([ARCH, ARCH]), "general.architecture: is listed twice"),
        (gguf_bytes([key("", 4, bytes(4))]), "key 0: has no name"),
        (gguf_bytes([text(b"\xff") + struct.pack("<I", 4) + bytes(4)]), "not valid UTF-8"),
        (gguf_bytes([text("k" * 70000) + struct.pack("<I", 4) + bytes(4)]), "name that is too long"),
        (gguf_bytes([ARCH, key("k", 13, bytes(8))]), "k: has an unknown type (found 13)"),
        (gguf_bytes([ARCH, key("k", 8, struct.pack("<Q", HUGE) + bytes(8))]), "k: is truncated or corrupt"),
        (gguf_bytes([ARCH, key("k", 9, array(8, HUGE, bytes(8)))]), "k: has too many elements"),
        (gguf_bytes([ARCH, key("k", 9, array(8, 1 << 24, bytes(8)))]), "k: is truncated or corrupt"),
        (gguf_bytes([ARCH, key("k", 9, array(0, 1 << 24, bytes(8)))]), "k: is truncated or corrupt"),
        (gguf_bytes([ARCH, key("k", 9, array(9, 1, array(9, 1, array(9, 1))))]), "k: is an array of arrays"),
        (gguf_bytes([ARCH, key("k", 9, array(99, 1, bytes(8)))]), "k: is an array of an unknown type"),
        (gguf_bytes([ARCH, key("general.alignment", 4, struct.pack("<I", 0))]), "is not a power of two"),
        (gguf_bytes([ARCH, key("general.alignment", 4, struct.pack("<I", 33))]), "is not a power of two"),
        (gguf_bytes([ARCH, key("general.alignment", 8, text("32"))]), "is not a power of two"),
        (gguf_bytes([ARCH], [tensor("a"), tensor("a", offset=32)], bytes(64)), "a: is listed twice"),
        (gguf_bytes([ARCH], [tensor("n" * 64)], bytes(64)), "name that is too long"),
        (gguf_bytes([ARCH], [tensor("a", (1,) * 5)], bytes(64)), "a: has too many dimensions"),
        (gguf_bytes([ARCH], [tensor("a", (HUGE - 1, HUGE - 1))], bytes(64)), "a: is impossibly large"),
        (gguf_bytes([ARCH], [tensor("a", (2**60,))], bytes(64)), "a: is truncated"),
        (gguf_bytes([ARCH], [tensor("a", kind=4)], bytes(64)), "a: has an unknown type (found 4)"),
        (gguf_bytes([ARCH], [tensor("a", kind=2**32 - 1)], bytes(64)), "a: has an unknown type"),
        (gguf_bytes([ARCH], [tensor("a", (33,), 8)], bytes(64)), "not whole Q8_0 blocks"),
        (gguf_bytes([ARCH], [tensor("a", (), 8)], bytes(64)), "not whole Q8_0 blocks (found 1"),
        (gguf_bytes([ARCH], [tensor("a", offset=32)], bytes(64)), "a: has the wrong offset"),
        (
            gguf_bytes([ARCH], [tensor("a"), tensor("b", offset=0)], bytes(64)),
            "b: has the wrong offset",
        ),
        (gguf_bytes([ARCH], [tensor("a")], bytes(15)), "a: is truncated"),
    ],
)
def test_crafted_files(write, content, problem):
    assert problem in refusal(write(content))


def test_every_truncation_is_refused(golden_gguf, write):
    whole = golden_gguf.read_bytes()
    header_end = read_header(golden_gguf).tensors[0].offset
    for cut in [*range(0, header_end, 13), header_end - 1, header_end, header_end + 1, len(whole) - 512]:
        refusal(write(whole[:cut]))


@settings(max_examples=300, deadline=1000)
@given(data=st.data())
def test_mutations_never_do_anything_but_refuse(golden_gguf, tmp_path_factory, data):
    raw = bytearray(golden_gguf.read_bytes()[:8192])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 4500))
        patch = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8), st.just(bytes(8)))
        )
        raw[place : place + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(bytes(raw) + bytes(len(golden_gguf.read_bytes()) - len(raw)))
    try:
        header = read_header(path)
        describe(header, None, True)
    except SbEdgeError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=1000)
@given(content=st.binary(max_size=200))
def test_any_bytes(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    with pytest.raises(GgufError):
        read_header(path)


def split_files(folder: Path, count: int = 3) -> list[Path]:
    writer = gguf.GGUFWriter(None, "llama", split_max_tensors=1)
    for number in range(count):
        writer.add_tensor(f"t{number}", np.full(8, number, np.float32))
    writer.write_header_to_file(folder / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


def test_splits_are_followed(tmp_path):
    files = split_files(tmp_path)
    header = read_header(files[0])
    assert header.files == files and [entry.file for entry in header.tensors] == files
    for number, entry in enumerate(header.tensors):
        assert (np.fromfile(entry.file, np.float32, 8, offset=entry.offset) == number).all()


def test_split_problems(tmp_path):
    files = split_files(tmp_path)
    assert "not the first part" in refusal(files[1]) and files[0].name in refusal(files[1])
    third = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(GgufError, match=r"split\.no: is not the part that its name says"):
        read_header(files[0])
    files[2].unlink()
    with pytest.raises(GgufError, match=r"m-00003-of-00003\.gguf: a part is missing"):
        read_header(files[0])
    files[2].write_bytes(third)
    renamed = files[0].rename(tmp_path / "renamed.gguf")
    assert "is not the first part of a split model" in refusal(renamed)


def test_integer_keys(write):
    keys = [
        ARCH,
        key("llama.a", 4, struct.pack("<I", 7)),
        key("llama.b", 8, text("x")),
        key("llama.c", 7, b"\1"),
    ]
    header = read_header(write(gguf_bytes(keys)))
    assert header.integer("a") == 7 and header.integer("none", 3) == 3
    for name in ("b", "c"):
        with pytest.raises(GgufError, match=rf"llama\.{name}: is not an integer"):
            header.integer(name)
    with pytest.raises(GgufError, match=r"llama\.none: key not found"):
        header.integer("none")
