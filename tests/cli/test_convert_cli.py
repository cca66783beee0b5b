from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import SB_EDGE, sb_edge

from sb_edge.arch.config import PRESETS
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.gguf.reader import read_header


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_init_and_convert(tmp_path):
    made = sb_edge("init", "--preset", "tiny", "-o", tmp_path / "tiny", "--dtype", "f16", "--seed", 7)
    assert made.returncode == 0 and made.stdout == f"{tmp_path / 'tiny'}\n"
    assert re.search(r"initialised tiny: 1\.3 MiB of f16, in [\d.]+ s", made.stderr)
    done = sb_edge("convert", tmp_path / "tiny", "--outfile", tmp_path / "tiny.gguf")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'tiny.gguf'}\n"
    assert re.search(r"converted .* to f16: 59 tensors, 1\.3 MiB, in [\d.]+ s, \d+ MB/s", done.stderr)
    assert read_header(tmp_path / "tiny.gguf").arch == "spikingbrain"


def test_split(data, tmp_path):
    done = sb_edge("convert", data / "gla_swa", "--outfile", tmp_path / "m.gguf", "--split-max-size", "300K")
    assert done.returncode == 0
    assert done.stdout.split() == [str(tmp_path / name) for name in names(tmp_path)]
    assert len(names(tmp_path)) > 2


def test_dry_run(data, tmp_path):
    done = sb_edge(
        "convert", data / "gla_swa", "--outfile", tmp_path / "m.gguf", "--outtype", "q8_0", "--dry-run"
    )
    assert done.returncode == 0 and names(tmp_path) == []
    assert re.search(r"blk\.0\.ffn_up\.weight +Q8_0 +256x128 +34,816", done.stdout)
    assert "vocabulary: no_vocab" in done.stdout and str(tmp_path / "m.gguf") in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["nowhere"], 1, "error: nowhere: not found"),
        (["{data}/gla_swa", "--spike-k", "0"], 2, "'0' is not a positive number; the release uses 3"),
        (["{data}/gla_swa", "--spike-k", "-1"], 2, "'-1' is not a positive number"),
        (["{data}/gla_swa", "--spike-k", "nan"], 2, "'nan' is not a positive number"),
        (["{data}/gla_swa", "--spike-k", "auto"], 2, "'auto' is not a positive number"),
        (["{data}/gla_swa", "--spike-k", "3", "--spike-projections", "wq"], 2, "'wq' is not one of attn_q"),
        (["{data}/gla_swa", "--spike-projections", "attn_q"], 1, "give --spike-k too"),
        (["{data}/gla_swa", "--metadata", "none.json"], 1, "none.json: not found"),
        (
            ["{data}/gla_swa", "--outfile", "/nonexistent/x.gguf"],
            1,
            "/nonexistent: the folder does not exist",
        ),
        (["{data}/gla_swa", "--outtype", "q3"], 2, "Invalid value for '--outtype'"),
        (["{data}/gla_swa", "--split-max-size", "0"], 2, "'0' is not a size such as 500M or 2G"),
        ([], 2, "Missing argument"),
    ],
)
def test_errors(data, tmp_path, args, code, message):
    done = sb_edge("convert", *(arg.replace("{data}", str(data)) for arg in args))
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_keeps_the_earlier_file(tmp_path):
    """A real process, interrupted while its temporary file grows."""
    config = PRESETS["tiny"].model_copy(
        update={"hidden_size": 1024, "num_attention_heads": 8, "intermediate_size": 16384}
    )
    write_random_checkpoint(config, tmp_path / "big", attention_bias=False, dtype="f32")
    target = tmp_path / "out.gguf"
    target.write_bytes(b"earlier")
    process = subprocess.Popen(
        [*SB_EDGE, "convert", str(tmp_path / "big"), "--outtype", "q8_0", "--outfile", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not [file for file in tmp_path.glob(".out.gguf.partial-*/*") if file.stat().st_size > 2_000_000]:
        assert process.poll() is None and time.monotonic() < deadline, (
            "it ended before it could be interrupted"
        )
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == "interrupted"
    assert target.read_bytes() == b"earlier" and names(tmp_path) == ["big", "out.gguf"]


def test_ctrl_c_during_init_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [*SB_EDGE, "init", "--preset", "1b", "-o", str(tmp_path / "one")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".one.partial-*/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == "interrupted"
    assert names(tmp_path) == []


def test_folder_that_cannot_be_written(data, tmp_path):
    import os

    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "checkpoint"
    shutil.copytree(data / "gla_swa", folder)
    folder.chmod(0o500)
    done = sb_edge("convert", folder)
    assert done.returncode == 1 and "cannot be written: Permission denied" in done.stderr
