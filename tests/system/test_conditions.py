from __future__ import annotations

import dataclasses

from sb_edge.system.conditions import read_conditions, throttle_count


def test_what_the_system_tells_is_plausible_and_the_rest_is_null() -> None:
    conditions = read_conditions(throttle_count())
    for name, value in dataclasses.asdict(conditions).items():
        low, high = {"cpu_mhz": (1, 1e5), "cpu_mhz_max": (1, 1e5), "temperature_c": (1, 150)}.get(
            name, (0, 1e9)
        )
        assert value is None or low <= value <= high, name


def test_without_a_count_before_there_are_no_events() -> None:
    assert read_conditions(None).throttle_events is None
