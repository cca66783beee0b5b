"""Files as they should not be: one line each, in a time that somebody waits for."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_edit import rewrite
from support import SB_EDGE, exit_code, refusal, sb_edge

from sb_edge.engine import find_engine
from sb_edge.engine.prefix import hashes_of


@pytest.fixture
def checkpoint(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / "gla_swa", tmp_path / "checkpoint"))


BAD_JSON = {
    "nested": "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "digits": '{"model_type": "gla_swa", "vocab_size": ' + "9" * 5000 + "}",
    "not UTF-8": b'{"model_type": "caf\xe9"}',
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=list(BAD_JSON))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_json_that_python_stumbles_over(
    name: str, content: str | bytes, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    problem = "is not UTF-8 text" if isinstance(content, bytes) else "is not valid JSON"
    assert f"{name}: {problem}" in refusal(capsys, "convert", checkpoint, "--dry-run")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["fifo", "folder"])
def test_a_file_of_a_checkpoint_that_is_no_file(
    name: str, make: Callable[[Path], None], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    make(checkpoint / name)
    assert exit_code("convert", checkpoint, "--dry-run") == 1
    found = capsys.readouterr()
    assert found.err.count("\n") == 1 and found.out == ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", ["fifo", "/dev/zero"])
def test_an_input_that_never_ends_is_refused(
    source: str, golden_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / source
    if source == "fifo":
        os.mkfifo(path)
    for line in (
        ("inspect", path),
        ("generate", path, "-p", "x"),
        ("generate", golden_gguf, "-f", path),
        ("spikes", "stats", golden_gguf, "--text", path),
        ("quantize", path, tmp_path / "out.gguf", "Q8_0"),
        ("transplant", path, "-o", tmp_path / "out"),
        ("bench", "report", path, "-o", tmp_path / "out.html"),
        ("eval", golden_gguf, "--base", golden_gguf, "--questions", path),
    ):
        assert f"{path}: is not a regular file" in refusal(capsys, *line)


def test_a_key_cannot_rewrite_the_terminal(
    golden_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "escape.gguf"
    rewrite(golden_gguf, path, {"spikingbrain.\x1b[31mred": 7, "spikingbrain.\x1b]0;t\x07": "\x1b[2J"})
    assert exit_code("inspect", path) == 0
    assert "\x1b" not in capsys.readouterr().out
    rewrite(golden_gguf, path, {"spikingbrain.\x1b[31mred": float("nan")})
    assert "\\x1b[31mred" in refusal(capsys, "inspect", path)


def test_a_torn_row_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Path) -> None:
    rows = next((data.parent.parent / "bench" / "results").glob("*.jsonl")).read_bytes().splitlines(True)
    (tmp_path / "rows.jsonl").write_bytes(rows[0] + rows[1] + rows[2][: len(rows[2]) // 2])
    assert exit_code("bench", "report", tmp_path / "rows.jsonl", "-o", tmp_path / "r.html") == 0
    assert "line 3 is incomplete and left out" in capsys.readouterr().err


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
CARDS = {"aliases": ALIASES, "nested": "a: " + "[" * 60_000, "large": "a: " + "x" * 100_000}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("header", CARDS.values(), ids=list(CARDS))
def test_a_model_card_that_never_ends(
    header: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "README.md").write_text(f"---\n{header}\n---\nText.\n")
    found = refusal(capsys, "convert", checkpoint, "--dry-run")
    assert "README.md: " in found and len(found) < 500


@pytest.mark.engine
@pytest.mark.parametrize("limit", [55, 58, 60, 90, 97, 98, 150, 600])
def test_a_small_address_space_is_one_line(limit: int, golden_gguf: Path) -> None:
    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit << 20, limit << 20))

    for line in (("inspect", golden_gguf), ("parity", golden_gguf, "--golden", golden_gguf)):
        done = subprocess.run(
            [*SB_EDGE, *map(str, line)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=confine,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.engine
def test_a_state_for_a_full_device(tiny: Path, tmp_path: Path) -> None:
    done = sb_edge("generate", tiny, "-p", "x", "-n", "1", "--no-stats", "--save-state", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "error: /dev/full: no space left on the device; free some space or choose another folder\n"
    )


@pytest.fixture(scope="module")
def engine_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the engine with a manifest of its files, as a build writes it."""
    prefix = tmp_path_factory.mktemp("engine") / "prefix"
    shutil.copytree(find_engine().prefix, prefix, symlinks=True)
    manifest = json.loads((prefix / "engine.json").read_text())
    manifest["files"] = hashes_of(prefix)
    (prefix / "engine.json").write_text(json.dumps(manifest))
    return prefix


def with_engine(prefix: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SB_EDGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SB_EDGE_ENGINE": str(prefix)},
    )


@pytest.mark.engine
def test_engine_files_are_those_that_were_built(engine_copy: Path, tiny: Path) -> None:
    done = with_engine(engine_copy, "engine", "info", "--verify")
    assert done.returncode == 0 and "files are as built" in done.stderr
    for name in ("lib/libllama.so", "lib/libggml-base.so", "bin/sb-memory"):
        file = (engine_copy / name).resolve()
        content = file.read_bytes()
        changed = {
            "truncated": content[: len(content) // 3],
            "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "missing": None,
        }
        for how, data in changed.items():
            file.unlink()
            if data is not None:
                file.write_bytes(data)
                file.chmod(0o755)
            use = ("run", "sb-memory") if name.startswith("bin") else ("generate", tiny, "-p", "x", "-n", "1")
            for arguments in (("engine", "info", "--verify"), use):
                done = with_engine(engine_copy, *arguments)
                assert done.returncode == 1, how
                assert done.stderr.count("\n") == 1, done.stderr
                assert (
                    "is not the file that was built" in done.stderr
                    or "is missing" in done.stderr
                    or (name.startswith("bin") and "no such program" in done.stderr)
                )
        file.write_bytes(content)
        file.chmod(0o755)


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_built_in_model_that_was_changed_is_built_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    real = Path(os.environ["SB_EDGE_CACHE"])
    cache.mkdir()
    for name in ("engines", "source"):
        (cache / name).symlink_to(real / name)
    shutil.copytree(real / "models", cache / "models", ignore=shutil.ignore_patterns("*-r1-*", ".*"))
    env = os.environ | {"SB_EDGE_CACHE": str(cache)}

    def inspect() -> str:
        command = [*SB_EDGE, "inspect", "default"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        return done.stdout

    before = inspect()
    model = next((cache / "models").glob("SpikingBrain-*.gguf"))
    whole = model.read_bytes()
    shutil.copy(next((cache / "models").glob("SmolLM2*.gguf")), model)
    assert inspect() == before
    assert model.read_bytes() == whole


LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("command", ["transplant", "convert"])
def test_a_peft_adapter_is_refused(
    command: str, alone: bool, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "transplant":
        (checkpoint / "config.json").write_text(json.dumps(LLAMA))
    if alone:
        (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    found = refusal(capsys, command, checkpoint, "-o", tmp_path / "out")
    assert "a PEFT adapter is not supported" in found and "merge it into its base" in found
    assert not (tmp_path / "out").exists()


LORA = {"general.type": "adapter", "adapter.type": "lora"}


def write_lora(
    path: Path, *, alpha: str = "float32", a: tuple[int, int] = (4, 128), kind: str = "f4"
) -> None:
    writer = gguf.GGUFWriter(path, "spikingbrain")
    for key, value in LORA.items():
        writer.add_string(key, value)
    add = {"float32": writer.add_float32, "float64": writer.add_float64, "string": writer.add_string}[alpha]
    add("adapter.lora.alpha", "8" if alpha == "string" else 8.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones(a, kind))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((128, 4), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.engine
def test_a_lora_that_does_not_fit_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.gguf"
    line = ("generate", tiny, "-p", "x", "-n", "1", "--no-stats", "--lora", path)
    write_lora(path)
    assert sb_edge(*line).returncode == 0
    for wrong, named in (
        ({"alpha": "float64"}, "adapter.lora.alpha"),
        ({"alpha": "string"}, "adapter.lora.alpha"),
        ({"a": (5, 128)}, "lora_a"),
        ({"a": (4, 64)}, "lora_a"),
        ({"kind": "i4"}, "lora_a"),
        ({"kind": "f8"}, "lora_a"),
    ):
        write_lora(path, **wrong)  # type: ignore[arg-type]
        done = sb_edge(*line)
        assert done.returncode == 1, wrong
        assert named in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.engine
def test_grammars_and_schemas_that_cannot_be_followed(tiny: Path) -> None:
    line = ("generate", tiny, "-p", "x", "-n", "4", "--no-stats")
    deep = "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000
    done = sb_edge(*line, "--grammar", deep)
    assert done.returncode == 1 and "the grammar is nested too deeply" in done.stderr
    flat = 'root ::= "' + "(" * 2_000 + '" # ' + "(" * 2_000
    assert sb_edge(*line, "--grammar", flat).returncode == 0
    for schema in (
        {"type": "integer", "minimum": 3},
        {"type": "object", "properties": {"a": {"type": ["number", "null"], "exclusiveMaximum": 3}}},
        {"anyOf": [{"type": "number", "multipleOf": 2}]},
    ):
        done = sb_edge(*line, "-j", json.dumps(schema))
        assert done.returncode == 1 and "bounds of numbers are not supported" in done.stderr
    named = {"type": "object", "properties": {"minimum": {"type": "string"}}, "required": ["minimum"]}
    text = sb_edge(
        *line[:4], "400", "--no-stats", "--temp", "3", "--seed", "2", "-j", json.dumps(named)
    ).stdout
    assert not any(ord(char) < 32 for char in text.rstrip("\n"))


@pytest.mark.engine
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the system call fail")
def test_weights_that_cannot_be_locked_are_said(tiny: Path) -> None:
    command = ["strace", "-f", "-o", "/dev/null", "-e", "inject=mlock:error=ENOMEM", *SB_EDGE]
    command += ["generate", str(tiny), "-p", "x", "-n", "1", "--no-stats", "--mlock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "are not kept in physical memory" in done.stderr


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the system call fail")
def test_a_file_that_cannot_be_read_is_named(golden_gguf: Path) -> None:
    command = ["strace", "-f", "-o", "/dev/null", "-P", str(golden_gguf), "-e", "inject=read:error=EIO"]
    command += [sys.executable, "-m", "sb_edge", "inspect", str(golden_gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {golden_gguf}: Input/output error\n"


@pytest.mark.engine
def test_a_model_that_shrinks_while_it_is_used(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    shutil.copy(tiny, model)
    command = [*SB_EDGE, "generate", model, "-p", "x", "-n", "4000", "-c", "4096"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        os.truncate(model, 5000)
        _, problem = process.communicate()
    assert (process.returncode, problem) == (1, f"error: {model}: became shorter while it was read\n")
