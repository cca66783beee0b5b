"""Numbers on the command line: out of range is bad usage."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from support import exit_code, sb_edge

from sb_edge.cli import cli
from sb_edge.cli.distill import TRAINING_TOKENS, StageValue
from sb_edge.cli.params import TokenLimit, Tokens
from sb_edge.evaluate.perplexity import text_tokens
from sb_edge.runtime.sampling import RANGES, Sampling
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError

REFUSED = [
    *((option, value) for option in ("--temp", "--top-p", "--min-p") for value in ("nan", "inf", "-1")),
    *(("--repeat-penalty", value) for value in ("nan", "inf", "0", "1e-40", "-1")),
    *((f"--{kind}-penalty", value) for kind in ("presence", "frequency") for value in ("nan", "3")),
    ("--repeat-last-n", "2147483647"),
    ("--top-k", "2147483648"),
    ("--seed", "4294967295"),
    ("-t", "100000"),
    ("-t", "0"),
]


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_a_number_out_of_range_is_bad_usage(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("generate", "absent.gguf", "-p", "x", option, value) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ("sparsify", "a", "b", "--text", "c", "--budget", "nan"),
        ("spikes", "tune", "a", "b", "--text", "c", "--budget", "inf"),
        ("bench", "decode", "a", "--time-budget", "nan"),
        ("bench", "decode", "a", "-t", "100000"),
        ("parity", "a", "b", "--tolerance", "nan"),
        ("transplant", "a", "-o", "b", "--norm-scale", "nan"),
        ("distill", "a", "-o", "b", "--answer-weight", "nan"),
        ("quantize", "a", "b", "Q4_0", "-t", "100000"),
    ],
    ids=" ".join,
)
def test_no_command_takes_a_number_that_is_none(line: tuple[str, ...]) -> None:
    assert exit_code(*line) == 2


@pytest.mark.parametrize(
    ("value", "number"), [("64k", 65536), ("1M", 2**20), ("1.5K", 1536), ("1.0001k", None), ("nan", None)]
)
def test_a_number_of_tokens(value: str, number: int | None) -> None:
    for kind, text, expected in (
        (Tokens(), value, number),
        (StageValue(TRAINING_TOKENS), f"whole={value}", ("whole", number)),
    ):
        if number is None:
            with pytest.raises(click.BadParameter, match="is not a number of tokens"):
                kind.convert(text, None, None)
        else:
            assert kind.convert(text, None, None) == expected


def test_an_answer_without_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert (TokenLimit().convert("-1", None, None), TokenLimit().convert("2k", None, None)) == (None, 2048)
    assert exit_code("generate", "absent.gguf", "-p", "x", "-n", "-1") == 1
    assert exit_code("generate", "absent.gguf", "-p", "x", "-n", "-2") == 2


def _options(group: click.Group, path: str) -> Iterator[tuple[str, click.Option]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from _options(command, f"{path} {name}")
        elif command is not None:
            for param in command.params:
                if isinstance(param, click.Option):
                    yield f"{path} {name} {param.opts[0]}", param


def test_every_option_that_counts_tokens_takes_suffixes() -> None:
    options = dict(_options(cli, "sb-edge"))
    assert isinstance(options["sb-edge bench decode -n"].type, Tokens)
    wrong = [
        name
        for name, option in options.items()
        if re.search(r"\btokens\b", option.help or "")
        and isinstance(option.type, click.IntRange)
        and not name.endswith("--top-k")  # the k of the sampler
    ]
    assert wrong == []


@pytest.mark.parametrize("name", RANGES)
def test_the_library_refuses_the_same_numbers(name: str) -> None:
    least, most = RANGES[name]
    assert {field.name for field in fields(Sampling)} >= set(RANGES)
    for value in (least, most):
        Sampling(**{name: value})  # type: ignore[arg-type]
    for value in (least - 1, most * 2 + 1, float("nan"), float("inf")):
        with pytest.raises(InferenceError, match=f"{name}: is out of range"):
            Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.engine
def test_a_tiny_temperature_is_none_and_the_last_seed_repeats(tiny: Path) -> None:
    line = ("generate", tiny, "-p", "the end", "-n", "8", "--no-stats")
    greedy = sb_edge(*line, "--temp", "0").stdout
    for temperature in ("1e-40", "1e-8"):
        assert sb_edge(*line, "--seed", "1", "--temp", temperature).stdout == greedy
    drawn = {sb_edge(*line, "--temp", "3", "--seed", "4294967294").stdout for _ in range(3)}
    assert len(drawn) == 1


@pytest.mark.engine
@pytest.mark.parametrize("count", [0, -1, 513, 100_000])
def test_the_library_refuses_impossible_threads(count: int, golden_gguf: Path) -> None:
    with Model(golden_gguf) as model, pytest.raises(InferenceError, match="impossible number of threads"):
        Session(model, n_ctx=256, n_threads=count)


@pytest.mark.engine
def test_the_first_tokens_are_those_of_the_whole_text(tiny: Path) -> None:
    text = "It was the best of times, it was the worst of times. " * 2000
    with Model(tiny, vocab_only=True) as model:
        whole = model.tokenize(text, parse_special=False)
        for count in (0, 1, 64, 5000, len(whole), len(whole) + 1):
            assert text_tokens(model, text, count) == whole[:count]
        assert text_tokens(model, "", 3) == model.tokenize("")


PEAK = """
import pathlib, re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("sb_edge", run_name="__main__")
finally:  # VmHWM begins anew with exec; ru_maxrss keeps the peak of the process that forked
    status = pathlib.Path("/proc/self/status").read_text()
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", status)[1], file=sys.stderr)
"""


@pytest.mark.engine
def test_of_a_large_text_only_the_beginning_is_tokenized(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"It was the worst of times. " * (60 * 2**20 // 27))
    command = [sys.executable, "-c", PEAK, "sb-edge", "spikes", "stats", str(tiny), "--tokens", "64"]
    done = subprocess.run(
        [*command, "--text", str(tmp_path / "large.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 600 << 10  # kB; its tokens alone would take more
