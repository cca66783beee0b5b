from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.check import Room, require_memory, require_memory_for_weights
from sb_edge.memory.forecast import EngineSettings, forecast, forecast_weights
from sb_edge.util.errors import OutOfMemoryForecast
from sb_edge.util.output import format_bytes

GIB = 2**30


def refusal(model: GgufHeader, n_ctx: int, room: Room, **arguments) -> str:
    with pytest.raises(OutOfMemoryForecast) as caught:
        require_memory(model, n_ctx, room=room, **arguments)
    return str(caught.value)


def test_what_fits_is_let_through(hollow):
    llama = hollow["llama"]
    need = forecast(llama, 65536)
    require_memory(llama, 65536, room=Room(need.total, need.address_space))
    require_memory(hollow["spikingbrain"], 4096)


def beside(model: GgufHeader, nbytes: int) -> Room:
    """Room for the weights and `nbytes` more."""
    return Room(forecast_weights(model).total + nbytes)


def test_the_refusal_names_need_room_and_what_would_fit(hollow):
    llama = hollow["llama"]
    room = beside(llama, 3 * GIB)
    line = refusal(llama, 131072, room)
    need = forecast(llama, 131072).total
    assert f"a context of 131072 tokens will not fit in memory: it needs {format_bytes(need)}" in line
    assert "4.00 GiB KV cache and states" in line
    assert f"(found {format_bytes(room.physical)} available)" in line
    assert "try --cache-type-k q8_0 --cache-type-v q8_0 (" in line
    assert "--ctx-size 65536 (" in line


def test_the_alternatives_fit(hollow):
    llama = hollow["llama"]
    room = beside(llama, 3 * GIB)
    assert room.shortage(forecast(llama, 131072)) is not None
    assert room.shortage(forecast(llama, 131072, EngineSettings("q8_0", "q8_0"))) is None
    assert room.shortage(forecast(llama, 65536)) is None


def test_only_what_helps_is_offered(hollow):
    llama = hollow["llama"]
    assert "--cache-type-k" not in refusal(llama, 131072, beside(llama, GIB))
    quantized = EngineSettings("q8_0", "q8_0")
    assert "--cache-type-k" not in refusal(llama, 131072, beside(llama, 2 * GIB), settings=quantized)
    line = refusal(llama, 131072, beside(llama, 3 * GIB), context_option="--tokens", kv_option=None)
    assert "try --tokens 65536" in line
    assert refusal(llama, 131072, Room(1000)).endswith("; use a smaller model or close other programs")


def test_a_smaller_window_would_not_help(hollow):
    """A window keeps no more of a longer context, so that only a context within it is offered."""
    model = hollow["spikingbrain"]
    line = refusal(model, 1 << 20, beside(model, 90 * 2**20))
    assert "--ctx-size 2048" in line or "--ctx-size 4096" in line


def test_a_loaded_model_needs_its_context_only(hollow):
    model = hollow["llama"]
    need = forecast(model, 4096)
    require_memory(model, 4096, is_loaded=True, room=Room(need.total - need.engine))
    with pytest.raises(OutOfMemoryForecast):
        require_memory(model, 4096, room=Room(need.total - need.engine))


def test_what_a_command_takes_beside_the_engine_counts(hollow):
    assert "2.00 GiB beside the engine" in refusal(hollow["llama"], 4096, Room(2 * GIB), extra=2 * GIB)


def test_weights_alone(golden_gguf):
    from sb_edge.gguf.reader import read_header

    model = read_header(golden_gguf)
    require_memory_for_weights(model, None)
    with pytest.raises(OutOfMemoryForecast, match="the model will not fit in memory"):
        require_memory_for_weights(model, None, Room(1000))


def group(root: Path, lines: str, folders: dict[str, dict[str, str]]) -> Path:
    """A tree as the kernel shows it: /proc/self/cgroup and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for folder, files in folders.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text)
    return root


STAT = "anon 5000\nfile 4000\ninactive_file 1000\nactive_file 500\n"


def test_control_groups_version_2(tmp_path):
    files = {"memory.max": "100000\n", "memory.current": "41500\n", "memory.stat": STAT}
    root = group(tmp_path, "0::/user/app\n", {"user/app": files})
    assert Room.now(root).physical == 100000 - (41500 - 1500)


def test_the_tightest_group_counts(tmp_path):
    inner = {"memory.max": "max\n", "memory.current": "500\n"}
    outer = {"memory.max": "3000\n", "memory.current": "1000\n"}
    root = group(tmp_path, "0::/user/app\n", {"user/app": inner, "user": outer})
    assert Room.now(root).physical == 2000


def test_inside_a_container_the_group_is_the_root(tmp_path):
    files = {"memory.max": "9000\n", "memory.current": "10000\n"}
    assert Room.now(group(tmp_path, "0::/../../elsewhere\n", {"": files})).physical == 0


def test_control_groups_version_1(tmp_path):
    stat = "cache 1\ntotal_inactive_file 700\ntotal_active_file 300\ninactive_file 9\n"
    files = {"memory.limit_in_bytes": "50000\n", "memory.usage_in_bytes": "21000\n", "memory.stat": stat}
    unlimited = {"memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory.usage_in_bytes": "99\n"}
    lines = "5:cpu,cpuacct:/\n4:memory:/app\n0::/\n"
    root = group(tmp_path, lines, {"memory/app": files, "memory": unlimited})
    assert Room.now(root).physical == 30000


def test_without_control_groups_the_system_decides(tmp_path):
    assert Room.now(tmp_path).physical == pytest.approx(psutil.virtual_memory().available, rel=0.1)
