from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from support import SB_EDGE, exit_code, sb_edge

pytestmark = pytest.mark.engine


def test_a_saved_state_continues_the_text(tmp_path: Path) -> None:
    # products with Q4_0 round activations to INT8, which the last bit of a sum can tip; those with F32 do not
    model = tmp_path / "f32.gguf"
    assert exit_code("quantize", "default", model, "F32", "--allow-requantize") == 0
    greedy = ("--temp", "0", "--ctx-size", "512")
    opening, more = "The lighthouse stood", " and"
    first = sb_edge("generate", model, "-p", opening, "-n", "12", "--save-state", tmp_path / "state", *greedy)
    assert first.returncode == 0, first.stderr
    begun = first.stdout.rstrip("\n")
    second = sb_edge("generate", model, "-p", more, "-n", "8", "--load-state", tmp_path / "state", *greedy)
    assert second.returncode == 0, second.stderr
    whole = sb_edge("generate", model, "-p", opening + begun + more, "-n", "8", *greedy)
    assert second.stdout == whole.stdout


def test_the_prompt_may_come_from_standard_input() -> None:
    done = sb_edge("generate", "default", "-p", "-", "-n", "4", "--temp", "0", stdin="The lighthouse stood")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "tokens/s" in done.stderr


def test_chat_takes_turns_from_the_command_line() -> None:
    done = sb_edge("chat", "default", "-p", "Say hello.", "-p", "Say goodbye.", "-n", "8", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("> Say hello.\n")
    assert "> Say goodbye.\n" in done.stdout


def test_chat_takes_turns_from_a_terminal() -> None:
    done = sb_edge(
        "chat", "default", "-n", "4", "--temp", "0", stdin="Say hello.\n/clear\nSay goodbye.\n/exit\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("answer 4 tokens") == 2


def test_ctrl_c_ends_a_generation() -> None:
    command = [*SB_EDGE, "generate", "default", "-p", "Once", "-n", "4000", "--temp", "1.5", "--seed", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().endswith("interrupted")
    assert b"Traceback" not in errors


def test_what_will_not_fit_is_refused_with_the_figure() -> None:
    done = sb_edge("generate", "default-base", "-p", "x", "--ctx-size", "100000000")
    assert done.returncode == 1
    assert "will not fit in memory" in done.stderr
    assert "GiB" in done.stderr


def test_a_model_without_vocabulary_is_refused(golden_gguf: Path) -> None:
    done = sb_edge("generate", golden_gguf, "-p", "x")
    assert done.returncode == 1
    assert "has no vocabulary" in done.stderr
