from __future__ import annotations

import dataclasses
import getpass
import json
import socket

import pytest

from sb_edge.bench.speed.bandwidth import read_bandwidth
from sb_edge.engine.machine import Machine, describe_machine
from sb_edge.util.errors import SbEdgeError


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < read_bandwidth(2, buffer_bytes=1 << 25, passes=2) < 1e13


@pytest.mark.parametrize("arguments", [{"n_threads": 0}, {"n_threads": 1, "passes": 0}])
def test_bandwidth_refuses_impossible_counts(arguments: dict[str, int]) -> None:
    with pytest.raises(SbEdgeError, match="at least one thread"):
        read_bandwidth(**arguments)


def test_the_identity_is_the_hardware(machine: Machine) -> None:
    assert dataclasses.replace(machine, engine_key="other", os="another").id == machine.id
    assert dataclasses.replace(machine, cpu="faster").id != machine.id


def test_what_cannot_be_read_is_said(machine: Machine) -> None:
    assert dict(machine.facts())["Frequency governor"] == "not readable"
    assert machine.to_json()["id"] == machine.id


@pytest.mark.engine
def test_neither_host_nor_user_is_named() -> None:
    from sb_edge.engine import find_engine

    machine = describe_machine(find_engine())
    document = json.dumps(machine.to_json())
    assert machine.cpu
    assert machine.memory_bytes > 2**28
    assert socket.gethostname() not in document
    if getpass.getuser() != "root":
        assert getpass.getuser() not in document
