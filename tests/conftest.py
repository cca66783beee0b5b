"""Isolation: no test reads or writes the user's own folders; the built engine and models stay shared."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Fixed before HOME changes: engine and built-in models are expensive and read-only here.
from sb_edge.util.user_cache import cache_root

if TYPE_CHECKING:
    from sb_edge.engine.machine import Machine
    from sb_edge.quant.tuning import Text
    from sb_edge.runtime.session import Model

DATA = Path(__file__).parent / "data"

TINY_LLAMA = {
    "n_layer": 2,
    "hidden": 128,
    "n_head": 4,
    "n_head_kv": 2,
    "ffn": 256,
    "vocab": 256,
    "context": 4096,
}

_SHARED = ("engines", "layers", "locks", "logs", "models", "packages", "source", "work")
# Facts about files of tests stay out of the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="sb-edge-tests-")
for _name in _SHARED:
    (cache_root() / _name).mkdir(parents=True, exist_ok=True)
    Path(_CACHE.name, _name).symlink_to(cache_root() / _name)
os.environ["SB_EDGE_CACHE"] = _CACHE.name
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts background jobs with SIGINT ignored, and children inherit that; some tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-xdist's workers keep to a core each, and so do their children: two processes with two threads each
# would wait for one another at every barrier.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("SB_EDGE_DEBUG", raising=False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The golden checkpoints."""
    return DATA


@pytest.fixture(scope="session")
def golden_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The golden gla_swa checkpoint as a float32 GGUF."""
    from sb_edge.convert.convert import convert_checkpoint

    path = tmp_path_factory.mktemp("golden") / "gla_swa-f32.gguf"
    convert_checkpoint(DATA / "gla_swa", path, outtype="f32")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with a vocabulary; weights larger than usual, so that its predictions differ."""
    from safetensors.numpy import load_file, save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from sb_edge.arch.config import PRESETS
    from sb_edge.convert.convert import convert_checkpoint
    from sb_edge.convert.initialise import write_random_checkpoint
    from sb_edge.evaluate.perplexity import held_out_text

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = folder / "checkpoint"
    config = PRESETS["tiny"].model_copy(update={"vocab_size": 320})
    write_random_checkpoint(config, checkpoint, attention_bias=True, dtype="f32")
    weights = checkpoint / "model.safetensors"
    save_file(
        {
            name: values if values.ndim == 1 else values * (12 if name == "lm_head.weight" else 4)
            for name, values in load_file(weights).items()
        },
        weights,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([held_out_text()], trainer)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    convert_checkpoint(checkpoint, folder / "tiny.gguf", outtype="f32")
    return folder / "tiny.gguf"


@pytest.fixture(scope="session")
def texts(tiny: Path) -> tuple[Text, Text]:
    """Two texts drawn from the model's own predictions, so that any coding makes them less likely."""
    from sb_edge.quant.tuning import Text
    from sb_edge.runtime.session import Model

    with Model(tiny) as model:
        first, second = (Text(f"{seed}.txt", tuple(draw(model, 192, seed))) for seed in (1, 2))
    return first, second


def draw(model: Model, count: int, seed: int) -> Iterator[int]:
    """Tokens drawn from a model's own predictions, after token 0."""
    import numpy as np

    from sb_edge.runtime.session import Session

    generator = np.random.default_rng(seed)
    token = 0
    with Session(model, n_ctx=count, n_threads=1) as session:
        for _ in range(count):
            logits = session.evaluate([token]).astype(np.float64)
            odds = np.exp(logits - logits.max())
            token = int(generator.choice(len(odds), p=odds / odds.sum()))
            yield token


@pytest.fixture
def machine() -> Machine:
    from sb_edge.engine.machine import Machine

    return Machine(
        "a processor", 2, 4, 8 << 30, None, "Linux", "0123", "0.3.36", "0c1e570", ("0001-a.patch",)
    )


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset, random weights, float32."""
    from sb_edge.convert.convert import convert_checkpoint
    from sb_edge.convert.initialise import init_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    init_checkpoint("tiny", folder / "checkpoint")
    convert_checkpoint(folder / "checkpoint", folder / "tiny.gguf", outtype="f32")
    return folder / "tiny.gguf"


@pytest.fixture(scope="session")
def tiny_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LFM2 of three layers, the middle one attention, random weights, float16."""
    from sb_edge.bench.baselines.lfm2 import Lfm2Shape, write_lfm2_gguf

    path = tmp_path_factory.mktemp("lfm2") / "lfm2.gguf"
    shape = Lfm2Shape(n_layer=3, attention_layers=(1,), hidden=256, n_head=4, n_head_kv=2, ffn=512, vocab=512)
    write_lfm2_gguf(path, "f16", shape=shape)
    return path


@pytest.fixture(scope="session")
def tiny_rwkv7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RWKV-7 of two layers, random weights, float16."""
    from sb_edge.bench.baselines.rwkv7 import Rwkv7Shape, write_rwkv7_gguf

    path = tmp_path_factory.mktemp("rwkv7") / "rwkv7.gguf"
    ranks = {"decay_rank": 32, "learning_rank": 32, "value_rank": 32, "gate_rank": 64}
    write_rwkv7_gguf(path, "f16", shape=Rwkv7Shape(n_layer=2, hidden=256, ffn=512, vocab=512, **ranks))
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, random weights, float16."""
    from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf

    path = tmp_path_factory.mktemp("llama") / "llama.gguf"
    write_llama_gguf(path, "f16", shape=LlamaShape(**TINY_LLAMA))
    return path
