from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb_edge.gguf.reader import read_header
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError, StateError

pytestmark = pytest.mark.engine

CONTINUE = """
import json, sys
from pathlib import Path
import numpy as np
from sb_edge.runtime.session import Model, Session
gguf, state, rest, out = sys.argv[1:]
with Model(Path(gguf)) as model, Session(model, n_ctx=256, type_k="f32", type_v="f32") as session:
    seen = session.load(Path(state))
    logits = session.evaluate(json.loads(rest), all_logits=True)
    np.savez(out, seen=seen, logits=logits)
"""


@pytest.fixture(scope="module")
def model(golden_gguf: Path) -> Model:
    return Model(golden_gguf)


@pytest.fixture(scope="module")
def tokens(data: Path) -> list[int]:
    ids: list[int] = np.load(data / "gla_swa" / "golden.npz")["input_ids"].tolist()
    return ids


def whole(model: Model, tokens: list[int], **settings: int) -> np.ndarray:
    with Session(model, n_ctx=256, type_k="f32", type_v="f32", **settings) as session:
        return session.evaluate(tokens, all_logits=True)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def test_a_saved_state_continues_in_a_new_process(model: Model, tokens: list[int], tmp_path: Path) -> None:
    expected = whole(model, tokens)
    with Session(model, n_ctx=256, type_k="f32", type_v="f32") as session:
        session.evaluate(tokens[:50])
        session.save(tmp_path / "state", tokens[:50])
    arguments = [str(model.path), str(tmp_path / "state"), json.dumps(tokens[50:]), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", CONTINUE, *arguments], check=True)
    found = np.load(tmp_path / "out.npz")
    assert found["seen"].tolist() == tokens[:50]
    for position, (logits, wanted) in enumerate(zip(found["logits"], expected[50:], strict=True), 50):
        assert nmse(logits, wanted) < 1e-10, position


@pytest.mark.parametrize("n_ubatch", [1, 5, 32, 64])
def test_ubatches_do_not_change_the_logits(model: Model, tokens: list[int], n_ubatch: int) -> None:
    assert nmse(whole(model, tokens, n_ubatch=n_ubatch), whole(model, tokens)) < 1e-10


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_do_not_change_the_logits(model: Model, tokens: list[int], n_threads: int) -> None:
    assert nmse(whole(model, tokens, n_threads=n_threads), whole(model, tokens)) < 1e-10


def test_a_header_that_was_read_is_used(golden_gguf: Path) -> None:
    header = read_header(golden_gguf)
    with Model(golden_gguf, header=header) as model:
        assert model.header is header


def test_sequences_are_independent(model: Model, tokens: list[int]) -> None:
    other = tokens[::-1]
    with Session(model, n_ctx=256, n_seq_max=2, type_k="f32", type_v="f32") as session:
        first = session.evaluate(tokens[:40], all_logits=True, seq_id=0)
        second = session.evaluate(other, all_logits=True, seq_id=1)
        first = np.concatenate([first, session.evaluate(tokens[40:], all_logits=True, seq_id=0)])
    assert nmse(first, whole(model, tokens)) < 1e-10
    assert nmse(second, whole(model, other)) < 1e-10


def test_clear_forgets_the_recurrent_state_too(model: Model, tokens: list[int]) -> None:
    with Session(model, n_ctx=256, type_k="f32", type_v="f32") as session:
        session.evaluate(tokens)
        session.clear()
        assert session.position() == 0
        assert nmse(session.evaluate(tokens, all_logits=True), whole(model, tokens)) < 1e-10


def test_the_cache_has_the_size_of_the_window(model: Model) -> None:
    # two SWA layers of 2 heads of 32: window 16 and a ubatch of 64, rounded up to 256 cells
    with Session(model, n_ctx=65536, n_ubatch=64) as session:
        assert session.kv_bytes == pytest.approx(2 * 256 * 2 * 64 * 2, abs=2**13)
        # two GLA layers of 2 states of 32 x 32 float32
        assert session.state_bytes == pytest.approx(2 * 2 * 32 * 32 * 4, abs=2**13)


def test_watching_tensors(model: Model, tokens: list[int]) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    with Session(
        model,
        n_ctx=256,
        on_tensor=lambda name, values: seen.update({name: values.shape}),
        tensor_filter=r"l_out-\d",
    ) as session:
        session.evaluate(tokens[:7], all_logits=True)
    assert seen == {f"l_out-{layer}": (7, 128) for layer in range(4)}


def test_an_error_while_watching_comes_out(model: Model, tokens: list[int]) -> None:
    def fail(name: str, values: np.ndarray) -> None:
        raise ZeroDivisionError(name)

    with (
        Session(model, n_ctx=256, on_tensor=fail, tensor_filter="l_out-0") as session,
        pytest.raises(ZeroDivisionError, match="l_out-0"),
    ):
        session.evaluate(tokens[:7])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no tokens"),
        ([0, 256], "found 256, expected 0 to 255"),
        ([-1], "found -1"),
        ([0] * 257, "context is full"),
    ],
)
def test_bad_tokens_are_refused(model: Model, bad: list[int], message: str) -> None:
    with Session(model, n_ctx=256) as session, pytest.raises(InferenceError, match=message):
        session.evaluate(bad)


def test_a_state_of_other_weights_is_refused(
    model: Model, data: Path, tokens: list[int], tmp_path: Path
) -> None:
    from sb_edge.convert.convert import convert_checkpoint
    from sb_edge.convert.initialise import init_checkpoint

    init_checkpoint("tiny", tmp_path / "tiny", seed=5)
    convert_checkpoint(tmp_path / "tiny", tmp_path / "tiny.gguf", outtype="f32")
    with Session(model, n_ctx=256) as session:
        session.evaluate(tokens[:9])
        session.save(tmp_path / "state", tokens[:9])
    with (
        Model(tmp_path / "tiny.gguf") as other,
        Session(other, n_ctx=256) as session,
        pytest.raises(StateError, match="belongs to another model"),
    ):
        session.load(tmp_path / "state")


def test_damaged_states_are_refused(model: Model, tokens: list[int], tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Session(model, n_ctx=256) as session:
        session.evaluate(tokens[:9])
        session.save(path, tokens[:9])
        good = path.read_bytes()
        for size in (0, 7, 100, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:size])
            with pytest.raises(StateError):
                session.load(path)
        path.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
        with pytest.raises(StateError, match="damaged"):
            session.load(path)
        with pytest.raises(StateError, match="not found"):
            session.load(tmp_path / "nothing")
        # and the session still works
        assert session.position() == 9
        session.evaluate(tokens[9:])


def test_a_state_needs_the_same_kv_types(model: Model, tokens: list[int], tmp_path: Path) -> None:
    with Session(model, n_ctx=256) as session:
        session.evaluate(tokens[:9])
        session.save(tmp_path / "state", tokens[:9])
    with (
        Session(model, n_ctx=256, type_k="f32", type_v="f32") as session,
        pytest.raises(StateError, match="KV cache types"),
    ):
        session.load(tmp_path / "state")
