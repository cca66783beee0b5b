from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import SB_EDGE, exit_code, refusal, sb_edge

from sb_edge.runtime.session import Model, Session

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


def test_an_empty_prompt_continues_a_state(tiny: Path, tmp_path: Path) -> None:
    line = ("generate", tiny, "-p", "the end", "-c", "256", "--no-stats", "--temp", "0")
    whole = sb_edge(*line, "-n", "8")
    first = sb_edge(*line, "-n", "4", "--save-state", tmp_path / "state")
    assert first.returncode == 0, first.stderr
    line = ("generate", tiny, "-p", "", "-c", "256", "--no-stats", "--temp", "0")
    second = sb_edge(*line, "-n", "4", "--load-state", tmp_path / "state")
    assert second.returncode == 0, second.stderr
    assert first.stdout.rstrip("\n") + second.stdout == whole.stdout


def test_an_answer_that_fills_the_context_ends_there(tiny: Path, tmp_path: Path) -> None:
    line = ("generate", tiny, "-p", "the end", "-c", "256", "-n", "300", "--temp", "3", "--seed", "1")
    done = sb_edge(*line, "--save-state", tmp_path / "state")
    assert done.returncode == 0, done.stderr
    with Model(tiny) as model, Session(model, n_ctx=512) as session:
        saved = session.load_saved(tmp_path / "state")
    assert len(saved.tokens) in (255, 256)
    more = sb_edge(
        "generate", tiny, "-p", "", "-c", "512", "-n", "2", "--load-state", tmp_path / "state", "--no-stats"
    )
    assert more.returncode == 0, more.stderr


def test_a_state_survives_ctrl_c(tmp_path: Path) -> None:
    command = [*SB_EDGE, "generate", "default", "-p", "Once", "-n", "4000", "--temp", "1.5", "--seed", "3"]
    command += ["--save-state", str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    done = sb_edge("generate", "default", "-p", " and", "-n", "2", "--load-state", tmp_path / "state")
    assert done.returncode == 0, done.stderr


def test_the_prompt_may_come_from_standard_input() -> None:
    done = sb_edge("generate", "default", "-p", "-", "-n", "4", "--temp", "0", stdin="The lighthouse stood")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "tokens/s" in done.stderr


def test_chat_takes_turns_from_the_command_line() -> None:
    done = sb_edge("chat", "default", "-p", "Say hello.", "-p", "Say goodbye.", "-n", "8", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "> " not in done.stdout and done.stderr == ""


def test_a_command_of_the_chat_without_its_file_is_no_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/save\n")))
    assert "type /save FILE" in refusal(capsys, "chat", "default", "-n", "4")


def test_a_mistyped_command_of_the_chat_is_no_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/bye\n")))
    assert "unknown command /bye; /help lists commands" in refusal(capsys, "chat", "default", "-n", "4")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        (("-ngl", "99"), "-ngl; everything runs on the CPU"),
        (("-hf", "owner/name"), "-hf; download the file"),
        (("-no-cnv",), "-no-cnv; `generate` continues"),
    ],
)
def test_an_option_of_llama_cpp_that_is_absent_is_named(
    option: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("generate", "default", "-p", "x", *option) == 2
    assert hint in capsys.readouterr().err


def test_a_checkpoint_in_place_of_a_gguf_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is a folder (expected a GGUF file); `sb-edge convert`" in refusal(capsys, "chat", tmp_path)


def test_an_empty_prompt_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the prompt is empty" in refusal(capsys, "generate", tiny, "-p", "")


def test_a_piped_chat_prints_only_its_answers() -> None:
    lines = "Say hello.\n/clear\nSay goodbye.\n/exit\nNot asked.\n"
    done = sb_edge("chat", "default", "-n", "4", "--temp", "0", "--stats", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert "new conversation" in done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.count("answer 4 tokens") == 2


@pytest.mark.timeout(120)
def test_a_chat_in_a_terminal_edits_lines_and_keeps_a_history(tmp_path: Path) -> None:
    """Typed through a pseudo-terminal: a corrected line, the line before brought back, the end."""
    command = [*SB_EDGE, "chat", "default", "-n", "3", "--temp", "0", "-c", "512"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, environment)
    shown = b""

    def wait_for(text: bytes, count: int) -> None:
        nonlocal shown
        while shown.count(text) < count:
            shown += os.read(terminal, 4096)

    wait_for(b"/help lists commands", 1)
    time.sleep(1)
    os.write(terminal, b"/load absent\r")  # an error does not end the chat
    wait_for(b"error: absent", 1)
    time.sleep(1)
    os.write(terminal, b"Say hellx\x7fo.\r")
    wait_for(b"tokens/s", 2)
    time.sleep(1)
    os.write(terminal, b"\x1b[A\r")
    wait_for(b"tokens/s", 4)
    time.sleep(1)
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    history = tmp_path / "sb-edge" / "chat-history"
    assert history.read_text().count("+Say hello.") >= 1
    assert history.stat().st_mode & 0o077 == 0


def test_a_saved_chat_goes_on(tmp_path: Path) -> None:
    saved = tmp_path / "chat.state"
    options = ("-n", "8", "--temp", "0", "-c", "1024")
    whole = sb_edge("chat", "default", "-p", "Say hello.", "-p", "Say goodbye.", *options)
    first = sb_edge("chat", "default", "-p", "Say hello.", *options, "--save-session", saved)
    second = sb_edge("chat", "default", "-p", "Say goodbye.", *options, "--load-session", saved)
    assert first.stdout + second.stdout == whole.stdout
    other = sb_edge("generate", "default", "-p", "x", "-n", "1", "-c", "1024", "--save-state", tmp_path / "s")
    assert other.returncode == 0
    refused = sb_edge("chat", "default", "-p", "x", *options, "--load-session", tmp_path / "s")
    assert refused.returncode == 1 and "is not a saved conversation" in refused.stderr


@pytest.mark.parametrize(("option", "kept"), [("--stop", False), ("-r", True)])
def test_stop_texts(option: str, kept: bool) -> None:
    line = ("generate", "default", "-p", "The lighthouse stood", "-n", "24", "--temp", "0", "--no-stats")
    whole = sb_edge(*line).stdout.rstrip("\n")
    word = whole.split()[4]
    cut = sb_edge(*line, option, word).stdout.rstrip("\n")
    end = whole.index(word) + (len(word) if kept else 0)
    assert cut == whole[:end]


def test_grammars_and_schemas() -> None:
    line = ("generate", "default", "-p", "Answer:", "-n", "16", "--temp", "0", "--no-stats")
    assert sb_edge(*line, "--grammar", 'root ::= "yes" | "no"').stdout.strip() in ("yes", "no")
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    assert isinstance(json.loads(sb_edge(*line, "-j", schema).stdout)["a"], bool)
    for option, value, complaint in (
        ("--grammar", "root ::= (", "the grammar is not valid"),
        ("-j", "[", "the JSON schema cannot be used"),
    ):
        done = sb_edge(*line, option, value)
        assert done.returncode == 1 and complaint in done.stderr and done.stderr.count("\n") == 1


def test_penalties_change_the_text() -> None:
    line = ("generate", "default", "-p", "one two one two one two", "-n", "24", "--temp", "0", "--no-stats")
    plain = sb_edge(*line).stdout
    for option in ("--presence-penalty", "--frequency-penalty"):
        assert sb_edge(*line, option, "2").stdout != plain


def test_a_prompt_from_a_file_and_counts_with_k(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The lighthouse stood")
    line = ("generate", "-m", "default", "-n", "4", "--temp", "0", "--no-stats", "-c", "1k", "-ub", "64")
    told = sb_edge(*line, "-p", "The lighthouse stood", "-ctk", "f32", "-ctv", "f32")
    read = sb_edge(*line, "-f", tmp_path / "p.txt", "-ctk", "f32", "-ctv", "f32", "--no-mmap")
    assert told.returncode == read.returncode == 0, told.stderr + read.stderr
    assert told.stdout == read.stdout
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    refused = sb_edge(*line, "-f", tmp_path / "p.txt")
    assert refused.returncode == 1 and "is not UTF-8 text" in refused.stderr
    assert sb_edge(*line).returncode == 2


def test_a_lora_that_is_none_is_refused(golden_gguf: Path) -> None:
    done = sb_edge("generate", "default", "-p", "x", "--lora", golden_gguf)
    assert done.returncode == 1
    assert "is not a LoRA adapter of this model" in done.stderr and done.stderr.count("\n") == 1


def test_tools_of_the_engine_run() -> None:
    assert "llama-bench" in sb_edge("run").stdout
    done = sb_edge("run", "llama-bench", "-m", "default", "-p", "8", "-n", "0", "-r", "1", "-o", "json")
    assert json.loads(done.stdout)[0]["n_prompt"] == 8
    assert "the engine has no such program" in sb_edge("run", "llama-nothing").stderr


def test_models_are_listed() -> None:
    shown = {each["name"]: each for each in json.loads(sb_edge("models", "--json", "-").stdout)}
    assert set(shown) == {"default", "default-base", "1b", "llama-1b", "lfm2-1.2b", "rwkv7-1.5b"}
    assert shown["default"]["bytes"] == Path(shown["default"]["path"]).stat().st_size


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
