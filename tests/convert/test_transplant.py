from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from dense_shapes import dense_shapes
from safetensors.numpy import load_file, save_file

from sb_edge.convert.checkpoint.base_model import open_base
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.util.errors import CheckpointError, ConfigError, GgufError, OutputError

HIDDEN, HEADS, KV_HEADS, FFN, VOCAB, LAYERS = 64, 4, 2, 96, 50, 3


def weights(bias: bool = False, tied: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = dense_shapes(
        vocab=VOCAB,
        hidden=HIDDEN,
        n_layer=LAYERS,
        kv=HIDDEN // HEADS * KV_HEADS,
        ffn=FFN,
        bias=bias,
        tied=tied,
    )
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def config(**changes: object) -> dict[str, object]:
    return {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        **changes,
    }


def make_base(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def test_everything_but_attention_is_kept(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    report = transplant(base, tmp_path / "student", gla_layers=[1], dtype="f32")
    source = load_file(base / "model.safetensors")
    student = Checkpoint.open(tmp_path / "student")
    assert student.config.recurrent_layers == [False, True, False]
    assert student.config.rope_theta == 100000
    assert student.config.norm_eps == 1e-5
    assert (report.n_copied, report.n_new) == (2 + 9 * LAYERS, 4)
    for ours, theirs in {
        "model.embeddings.weight": "model.embed_tokens.weight",
        "model.layers.1.attn.q_proj.weight": "model.layers.1.self_attn.q_proj.weight",
        "model.layers.2.mlp.down_proj.weight": "model.layers.2.mlp.down_proj.weight",
        "model.layers.0.mlp_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    }.items():
        np.testing.assert_array_equal(student.read(ours), source[theirs])
    # the gate starts as a constant
    assert not student.read("model.layers.1.attn.gk_proj.1.weight").any()
    assert np.unique(student.read("model.layers.1.attn.gk_proj.1.bias")).tolist() == [0.0]


def test_the_even_layers_become_gla_by_default(tmp_path: Path) -> None:
    report = transplant(make_base(tmp_path / "base"), tmp_path / "student")
    assert report.config.recurrent_layers == [True, False, True]


def test_qwen2_biases_and_an_untied_head_are_kept(tmp_path: Path) -> None:
    base = make_base(
        tmp_path / "base", weights(bias=True, tied=False), model_type="qwen2", tie_word_embeddings=False
    )
    transplant(base, tmp_path / "student", dtype="f32")
    source, student = load_file(base / "model.safetensors"), Checkpoint.open(tmp_path / "student")
    np.testing.assert_array_equal(
        student.read("model.layers.2.attn.k_proj.bias"), source["model.layers.2.self_attn.k_proj.bias"]
    )
    np.testing.assert_array_equal(student.read("lm_head.weight"), source["lm_head.weight"])


def interleave(rows: np.ndarray, n_head: int) -> np.ndarray:
    """The row order of llama GGUFs, as the converter of llama.cpp makes it."""
    return (
        rows.reshape(n_head, 2, rows.shape[0] // n_head // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def write_llama_gguf(path: Path, arch: str = "llama", **keys: object) -> dict[str, np.ndarray]:
    source = weights()
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{arch}.{key.replace('__', '.')}", value)
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*(chr(0x100 + n) for n in range(VOCAB - 1)), "\u0101\u0102"])
    writer.add_token_types([3, *[1] * (VOCAB - 1)])
    writer.add_token_merges(["\u0101 \u0102"])
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    }
    for name, values in source.items():
        target = names.get(name)
        if target is None:
            _, _, number, rest = name.split(".", 3)
            target = f"blk.{number}.{names[rest]}"
        if arch == "llama" and target.endswith("attn_q.weight"):
            values = interleave(values, HEADS)
        if arch == "llama" and target.endswith("attn_k.weight"):
            values = interleave(values, KV_HEADS)
        writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return source


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rows_of_a_gguf_come_back_in_the_half_split_order(tmp_path: Path, arch: str) -> None:
    source = write_llama_gguf(tmp_path / "base.gguf", arch)
    transplant(tmp_path / "base.gguf", tmp_path / "student", dtype="f32")
    student = Checkpoint.open(tmp_path / "student")
    for projection in "qkvo":
        np.testing.assert_array_equal(
            student.read(f"model.layers.1.attn.{projection}_proj.weight"),
            source[f"model.layers.1.self_attn.{projection}_proj.weight"],
        )
    tokenizer = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    assert tokenizer["model"]["merges"] == ["\u0101 \u0102"]
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["\u0100"]


def test_the_exported_tokenizer_loads_and_cuts_text_the_same(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    write_llama_gguf(tmp_path / "base.gguf")
    open_base(tmp_path / "base.gguf").write_tokenizer(tmp_path)
    loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.get_vocab_size() == VOCAB
    assert loaded.token_to_id("\u0101") == 1


ROTARY = {"rope_theta": None}
"""Changes of `config` for a file in which transformers 5 has written `rope_parameters`."""


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 1e6}, 1e6),
        (ROTARY, 10000),
        (ROTARY | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}}, 1e6),
        ({"rope_theta": 1e6, "rope_parameters": {"partial_rotary_factor": 1.0}}, 1e6),
    ],
)
def test_the_base_of_the_rotary_frequencies_is_kept(
    tmp_path: Path, changes: dict[str, object], theta: float
) -> None:
    report = transplant(make_base(tmp_path / "base", **changes), tmp_path / "student")
    assert report.config.rope_theta == theta
    assert json.loads((tmp_path / "student" / "config.json").read_text())["rope_theta"] == theta


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, "--ignore-rope-scal"),
        ({"rope_type": "linear", "factor": 4.0}, "--ignore-rope-scaling"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            "kinds of layers",
        ),
        ({"rope_type": "default", "rope_theta": "abc"}, "rope_theta"),
        (["yarn"], "rope_parameters: is not a JSON object"),
    ],
)
def test_rotary_parameters_that_cannot_be_kept_are_refused(
    tmp_path: Path, parameters: dict[str, object] | list[str], message: str
) -> None:
    if isinstance(parameters, dict) and "rope_type" in parameters:
        parameters = {"rope_theta": 1e6, **parameters}
    base = make_base(tmp_path / "base", **ROTARY, rope_parameters=parameters)
    with pytest.raises(ConfigError, match=message):
        transplant(base, tmp_path / "student")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, "--ignore-rope-scaling"),
        ({"rope__scaling__type": "yarn"}, "--ignore-rope-scaling"),
        ({"rope__scaling__factor": 4.0}, "--ignore-rope-scaling"),
        ({"rope__scale_linear": 4.0}, "--ignore-rope-scaling"),
        ({"rope__dimension_count": 8}, "rope.dimension_count"),
        ({"attention__key_length": 32}, "attention.key_length"),
    ],
)
def test_a_gguf_with_other_rotary_embeddings_is_refused(
    tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    write_llama_gguf(tmp_path / "base.gguf", **keys)
    with pytest.raises((ConfigError, GgufError), match=message):
        transplant(tmp_path / "base.gguf", tmp_path / "student")


@pytest.mark.parametrize(
    "keys",
    [
        {"rope__scaling__type": "none"},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "linear"},
        {"rope__scaling__factor": 1.0},
        {"rope__dimension_count": 16, "attention__key_length": 16},
    ],
)
def test_a_gguf_with_plain_rotary_embeddings_is_taken(tmp_path: Path, keys: dict[str, object]) -> None:
    write_llama_gguf(tmp_path / "base.gguf", **keys)
    assert transplant(tmp_path / "base.gguf", tmp_path / "student").config.rope_theta == 100000


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_in_the_folder_is_refused(tmp_path: Path, name: str, alone: bool) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / name)
    if not alone:
        save_file(weights(), base / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: a PEFT adapter is not supported; merge it"):
        transplant(base, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_stored_output_that_is_the_embeddings_is_taken(tmp_path: Path) -> None:
    tensors = weights()
    embeddings = tensors["model.embed_tokens.weight"]
    base = make_base(tmp_path / "base", tensors | {"lm_head.weight": embeddings.copy()})
    transplant(base, tmp_path / "student", dtype="f32")
    student = Checkpoint.open(tmp_path / "student")
    assert student.config.tie_word_embeddings and "lm_head.weight" not in student.names
    np.testing.assert_array_equal(student.read("model.embeddings.weight"), embeddings)


@pytest.mark.parametrize("shape", [(VOCAB, HIDDEN), (VOCAB - 1, HIDDEN), (HIDDEN,), ()])
def test_another_output_than_the_embeddings_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    other = {"lm_head.weight": np.ones(shape, np.float32)}
    base = make_base(tmp_path / "base", weights() | other)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: differs from the embeddings.*set tie_word"):
        transplant(base, tmp_path / "student")


def test_a_missing_output_has_a_hint(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: .*set tie_word_embeddings to true"):
        transplant(base, tmp_path / "student")


def test_every_end_of_an_answer_is_kept(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", eos_token_id=7)
    (base / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert transplant(base, tmp_path / "student").config.eos_token_id == [7, 9]
    (base / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match="eos_token_id"):
        transplant(base, tmp_path / "other")


def without(name: str) -> dict[str, np.ndarray]:
    return {key: values for key, values in weights().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "changes", "error", "message"),
    [
        (None, {"model_type": "mamba"}, ConfigError, "model_type: cannot be transplanted"),
        (None, {"hidden_act": "gelu"}, ConfigError, "hidden_act"),
        (None, {"num_hidden_layers": "three"}, ConfigError, "num_hidden_layers"),
        (None, {"rope_scaling": {"rope_type": "llama3"}}, ConfigError, "--ignore-rope-scaling"),
        (None, {"head_dim": 32}, ConfigError, "head_dim"),
        (
            without("model.layers.1.mlp.up_proj.weight"),
            {},
            CheckpointError,
            "model.layers.1.mlp.up_proj.weight",
        ),
        (weights() | {"model.layers.0.extra.weight": np.zeros(3, np.float32)}, {}, CheckpointError, "extra"),
        (
            weights() | {"model.norm.weight": np.zeros(3, np.float32)},
            {},
            CheckpointError,
            "model.norm.weight",
        ),
        (
            weights() | {"model.norm.weight": np.full(HIDDEN, np.nan, np.float32)},
            {},
            CheckpointError,
            "model.norm.weight",
        ),
    ],
)
def test_bad_bases_are_refused(
    tmp_path: Path,
    tensors: dict[str, np.ndarray] | None,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    base = make_base(tmp_path / "base", tensors, **changes)
    with pytest.raises(error, match=message):
        transplant(base, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_other_refusals(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(ConfigError, match="no such layer"):
        transplant(base, tmp_path / "student", gla_layers=[3])
    with pytest.raises(CheckpointError, match="not found"):
        transplant(tmp_path / "nothing", tmp_path / "student")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(GgufError):
        transplant(tmp_path / "broken.gguf", tmp_path / "student")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "precious").touch()
    with pytest.raises(OutputError, match="already exists"):
        transplant(base, tmp_path / "student")
    assert (tmp_path / "student" / "precious").exists()
