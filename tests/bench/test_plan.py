from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sb_edge.bench.speed.available_memory import groups_that_fit, needed, require_memory
from sb_edge.bench.speed.context_fill import CHUNK
from sb_edge.bench.speed.plan import (
    AUTO_REAL_DEPTH,
    BenchModel,
    DecodeSettings,
    Subject,
    choose_fill,
    examine,
    make_plan,
)
from sb_edge.memory.check import Room
from sb_edge.util.errors import GgufError, OutOfMemoryForecast, SbEdgeError


@pytest.fixture
def spiking(tiny_gguf: Path) -> Subject:
    return examine(BenchModel("tiny", tiny_gguf))


@pytest.fixture
def llama(tiny_llama: Path) -> Subject:
    return examine(BenchModel("llama", tiny_llama))


def test_models_take_turns_from_shallow_to_deep(spiking: Subject, llama: Subject) -> None:
    settings = DecodeSettings((64, 0, 64), 1, cache_types=(("f16", "f16"), ("q8_0", "q8_0")))
    order = [(case.n_depth, case.subject.name, case.type_k) for case in make_plan([spiking, llama], settings)]
    assert order == [
        (depth, name, kind) for depth in (0, 64) for name in ("tiny", "llama") for kind in ("f16", "q8_0")
    ]


def test_labels_are_llama_benchs(spiking: Subject) -> None:
    shallow, deep = make_plan([spiking], DecodeSettings((0, 65536), 1, n_gen=128))
    assert (shallow.label, deep.label) == ("tg128", "tg128 @ d65536")


@pytest.mark.parametrize(
    ("depth", "choice", "expected"),
    [
        (0, "synthetic", "real"),
        (AUTO_REAL_DEPTH, "auto", "real"),
        (AUTO_REAL_DEPTH + 1, "auto", "synthetic"),
        (AUTO_REAL_DEPTH + 1, "real", "real"),
        (1, "synthetic", "synthetic"),
    ],
)
def test_fill_of_a_transformer(llama: Subject, depth: int, choice: str, expected: str) -> None:
    assert choose_fill(llama, depth, choice) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["auto", "real", "synthetic"])
def test_spikingbrain_is_always_prefilled_for_real(spiking: Subject, choice: str) -> None:
    assert choose_fill(spiking, 10**6, choice) == "real"  # type: ignore[arg-type]


def test_a_context_is_kept_only_for_a_deeper_real_fill(llama: Subject) -> None:
    cases = make_plan([llama], DecodeSettings((0, 64, 4096, 8192), 1))
    assert [case.is_continued for case in cases] == [False, True, False, False]
    assert [case.fill for case in cases] == ["real", "real", "real", "synthetic"]


def test_context_has_room_for_the_tokens_and_the_last_chunk(llama: Subject) -> None:
    real, synthetic = make_plan([llama], DecodeSettings((4096, 8192), 1, n_gen=8))
    assert real.n_ctx == 4096 + 256
    assert synthetic.n_ctx == 8192 + CHUNK


def test_what_does_not_fit_is_refused_with_an_alternative(llama: Subject) -> None:
    cases = make_plan([llama], DecodeSettings((64, 2**40), 1))
    with pytest.raises(OutOfMemoryForecast) as refusal:
        require_memory(cases)
    line = str(refusal.value)
    assert "tg32 @ d1099511627776" in line
    assert "GiB available" in line
    assert "--depths up to" in line
    assert "will not fit in memory" in line


def test_the_alternative_fits(llama: Subject) -> None:
    (case,) = make_plan([llama], DecodeSettings((2**40,), 1))
    with pytest.raises(OutOfMemoryForecast) as refusal:
        require_memory([case])
    offered = int(str(refusal.value).rpartition("--depths up to ")[2].split()[0])
    require_memory([dataclasses.replace(case, n_depth=offered)])


def test_a_quantized_cache_is_offered_where_it_fits(llama: Subject) -> None:
    (case,) = make_plan([llama], DecodeSettings((2**20,), 1, fill="real"))
    quantized = dataclasses.replace(case, type_k="q8_0", type_v="q8_0")
    room = Room(needed(quantized).total)
    with pytest.raises(OutOfMemoryForecast, match="try --cache-type-k q8_0 --cache-type-v q8_0 "):
        require_memory([case], room)
    require_memory([quantized], room)


def test_nothing_is_offered_where_nothing_fits(llama: Subject) -> None:
    with pytest.raises(OutOfMemoryForecast, match="use a smaller model"):
        require_memory(make_plan([llama], DecodeSettings((64,), 1)), Room(1000))


def test_what_fits_together_is_measured_together(spiking: Subject, llama: Subject) -> None:
    settings = DecodeSettings((64,), 1, cache_types=(("f16", "f16"), ("q8_0", "q8_0")))
    cases = make_plan([spiking, llama], settings)
    sizes = [needed(case).total for case in cases]

    def grouped(available: int, *, together: bool = True) -> list[int]:
        groups = list(groups_that_fit(cases, together=together, room=Room(available)))
        assert [case for group in groups for case in group] == cases
        return [len(group) for group in groups]

    assert grouped(sum(sizes)) == [4]
    assert grouped(sum(sizes) - 1) == [3, 1]
    assert grouped(1) == [1, 1, 1, 1]
    assert grouped(sum(sizes), together=False) == [1, 1, 1, 1]


def test_copies_count_where_the_context_cannot_be_cut_back(spiking: Subject, llama: Subject) -> None:
    from sb_edge.memory.forecast import forecast

    snapshot, plain = make_plan([spiking, llama], DecodeSettings((1024,), 1))
    expected = forecast(spiking.header, snapshot.n_ctx)
    assert needed(snapshot).extra == 2 * (expected.kv + expected.state)
    assert needed(plain) == forecast(llama.header, plain.n_ctx)


def test_neither_convolutions_nor_rwkv_can_be_cut_back(tiny_lfm2: Path, tiny_rwkv7: Path) -> None:
    subjects = [examine(BenchModel("model", path)) for path in (tiny_lfm2, tiny_rwkv7)]
    assert [subject.can_roll_back for subject in subjects] == [False, False]
    assert [choose_fill(subject, 10**6, "synthetic") for subject in subjects] == ["real", "real"]


@pytest.mark.parametrize(
    "changes", [{"depths": ()}, {"depths": (-1,)}, {"n_gen": 0}, {"repetitions": 0}, {"n_threads": 0}]
)
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SbEdgeError):
        dataclasses.replace(DecodeSettings((0,), 1), **changes)


def test_quantized_values_need_flash_attention() -> None:
    with pytest.raises(SbEdgeError, match="needs flash attention"):
        DecodeSettings((0,), 1, cache_types=(("f16", "q8_0"),), flash_attn="off")


def test_identity_is_the_content(tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_llama.read_bytes())
    original = examine(BenchModel("a", tiny_llama))
    assert examine(BenchModel("b", copy)).sha256 == original.sha256
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert examine(BenchModel("b", copy)).sha256 != original.sha256


def test_a_truncated_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_llama.read_bytes()[:-1000])
    with pytest.raises(GgufError, match=r"short\.gguf"):
        examine(BenchModel("short", short))
