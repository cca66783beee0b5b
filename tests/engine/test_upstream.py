"""llama.cpp's own tests on the patched tree: what `make upstream-tests` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sb_edge.engine import find_engine
from sb_edge.engine.upstream_tests import TESTS, UpstreamTest, make_models, run, suite_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    if find_engine().info.variant != "portable":
        make_models(find_engine(), folder)
    return folder


@pytest.mark.parametrize("test", TESTS, ids=lambda test: " ".join([test.name, *test.arguments]))
def test_upstream(test: UpstreamTest, models: Path) -> None:
    engine = find_engine()
    if test not in suite_of(engine):
        pytest.skip("upstream's program does not load a portable engine's backends")
    done = run(engine, test, models)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert "FAIL" not in done.stdout
    if "spikingbrain" in " ".join(test.arguments):
        # What it prints last comes from a thread that its end may cut off; the row's beginning is flushed.
        assert "spikingbrain" in done.stdout
