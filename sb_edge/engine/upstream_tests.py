"""llama.cpp's own tests that concern this project, run on the built engine: `make upstream-tests`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sb_edge.engine import Engine, find_engine

ARCH = "^spikingbrain$"


@dataclass(frozen=True)
class UpstreamTest:
    """One run of a test program. `{models}` in an argument stands for a folder with a tiny model of ours.

    `portable`: it runs in a portable engine. Some of upstream's programs load no backends, so that they find
    none where these are files of their own.
    """

    name: str
    arguments: tuple[str, ...] = ()
    portable: bool = False


OPERATORS = (
    "SB_GLA,SB_SPIKE_CODE,SB_SPIKE_MUL_MAT,SB_SPARSE_MUL_MAT,FLASH_ATTN_EXT_GROUPED,GATED_LINEAR_ATTN,"
    "RWKV_WKV6,RWKV_WKV7,SSM_SCAN"
)

TESTS = (
    UpstreamTest("test-gguf", portable=True),
    UpstreamTest("test-quantize-fns"),
    UpstreamTest("test-backend-ops", ("test", "-b", "CPU", "-o", OPERATORS), portable=True),
    UpstreamTest("test-llama-archs", ("-s", "1")),
    UpstreamTest("test-llama-archs", ("-s", "1", "-a", ARCH)),
    UpstreamTest("test-save-load-state", ("--models", "{models}")),
    UpstreamTest("test-recurrent-state-rollback", ("--models", "{models}")),
)


def suite_of(engine: Engine) -> list[UpstreamTest]:
    """Those of `TESTS` that run in an engine of this variant."""
    return [test for test in TESTS if test.portable or engine.info.variant != "portable"]


def make_models(engine: Engine, folder: Path) -> None:
    """Tiny random models of the architecture, as upstream's own test run makes them."""
    command = [str(engine.tool("test-llama-archs")), "-s", "1", "-a", ARCH, "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def run(engine: Engine, test: UpstreamTest, models: Path) -> subprocess.CompletedProcess[str]:
    """Run one test in `models`, where some leave files; its output is captured."""
    return subprocess.run(
        [engine.tool(test.name), *(argument.format(models=models) for argument in test.arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=models,
    )


def main() -> int:
    """Run all of them; the exit status is the number of failures."""
    engine = find_engine()
    failures = 0
    tests = suite_of(engine)
    with tempfile.TemporaryDirectory() as scratch:
        if any("{models}" in test.arguments for test in tests):
            make_models(engine, Path(scratch))
        for test in tests:
            start = time.monotonic()
            done = run(engine, test, Path(scratch))
            failures += done.returncode != 0
            status = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
            print(f"{status:8} {time.monotonic() - start:6.1f} s  {test.name} {' '.join(test.arguments)}")
            if done.returncode != 0:
                print("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    return failures


if __name__ == "__main__":
    sys.exit(main())
