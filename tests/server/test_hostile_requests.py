"""Cross-origin pages, slow clients and absurd requests do the server no harm."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningServer, running_server

pytestmark = pytest.mark.engine

HALF_SENT = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[RunningServer]:
    with running_server(tiny, ["-t", "1", "-c", "512"]) as running:
        yield running
        assert running.process.poll() is None
        assert running.is_healthy()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "127.evil.example", "192.168.1.9"]
)
def test_rebound_hosts_are_refused(server: RunningServer, host: str) -> None:
    for route in ("/health", "/props", "/"):
        status, body, _ = server.request("GET", route, headers={"Host": host})
        assert (status, "Host not allowed" in body.decode()) == (403, True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "127.0.0.2"])
def test_names_of_loopback_are_served(server: RunningServer, host: str) -> None:
    assert server.request("GET", "/health", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://"]
)
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_foreign_pages_are_refused(server: RunningServer, origin: str, method: str) -> None:
    status, _, headers = server.request(
        method, "/completion", json.dumps({"prompt": "a", "n_predict": 1}), {"Origin": origin}
    )
    assert status == 403
    assert headers.get("access-control-allow-origin") != origin


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:1"])
def test_pages_of_this_machine_are_served(server: RunningServer, origin: str) -> None:
    assert server.request("GET", "/health", headers={"Origin": origin})[0] == 200


def test_configured_origins_are_served(tiny: Path) -> None:
    with running_server(tiny, ["-t", "1", "-c", "512", "--cors-origins", "https://chat.example"]) as running:
        status, _, headers = running.request("GET", "/health", headers={"Origin": "https://chat.example"})
        assert (status, headers["access-control-allow-origin"]) == (200, "https://chat.example")


def test_half_sent_requests_do_not_block_others(server: RunningServer) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        for client in clients:
            client.sendall(HALF_SENT)
        assert server.is_healthy()
        assert server.ask("/completion", {"prompt": "a", "n_predict": 1})["tokens_predicted"] == 1
    finally:
        for client in clients:
            client.close()


def test_a_client_that_stops_sending_is_let_go(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(HALF_SENT)
        assert b"HTTP/1.1 4" in client.recv(4096) or client.recv(4096) == b""


def nested_groups(n: int) -> str:
    return "root ::= " + "(" * n + '"a"' + ")" * n


def chained_rules(n: int) -> str:
    return "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(n)), f'r{n} ::= "a"'])


def doubled_rules(n: int) -> str:
    """Every rule is reached in two ways, so that the last one is reached in 2^n."""
    rules = (f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(n))
    return "\n".join(["root ::= r0", *rules, f'r{n} ::= "a"'])


def multiplied_rules(n: int) -> str:
    """2^n ways to begin."""
    rules = (f'r{i} ::= r{i + 1} "a" | r{i + 1} "b"' for i in range(n))
    return "\n".join(["root ::= r0", *rules, f'r{n} ::= "c"'])


def optional_parts(n: int) -> str:
    return "root ::= " + "[a-z ]? " * n + '"."'


@pytest.mark.parametrize(
    "grammar",
    [
        nested_groups(50_000),
        chained_rules(100_000),
        "root ::= " + "(" * 100_000,
        multiplied_rules(60),
        optional_parts(5000),
        'root ::= "a"{5,2}',
    ],
    ids=["groups", "rules", "open", "multiplied", "optional", "repetition"],
)
def test_absurd_grammars_are_refused(server: RunningServer, grammar: str) -> None:
    question = {"prompt": "a", "n_predict": 1, "grammar": grammar}
    status, body, _ = server.request("POST", "/completion", json.dumps(question))
    assert (status, b"error" in body) == (400, True)
    assert server.is_healthy()


@pytest.mark.parametrize(
    "grammar",
    [nested_groups(200), chained_rules(5000), doubled_rules(40), optional_parts(80)],
    ids=["groups", "rules", "twice", "optional"],
)
def test_large_grammars_are_taken(server: RunningServer, grammar: str) -> None:
    answer = server.ask("/completion", {"prompt": "a", "n_predict": 1, "grammar": grammar})
    assert re.fullmatch(r"a?|[a-z ]*\.?", answer["content"])


def test_ways_that_multiply_later_end_the_answer(server: RunningServer) -> None:
    grammar = multiplied_rules(60).replace("root ::=", 'root ::= "x"')
    question = {"prompt": "a", "n_predict": 8, "grammar": grammar}
    status, body, _ = server.request("POST", "/completion", json.dumps(question))
    assert (status, b"grammar" in body) == (500, True)
    assert server.is_healthy()


@pytest.mark.parametrize("name", ["repeat_last_n", "dry_penalty_last_n"])
def test_windows_of_gigabytes_are_refused(server: RunningServer, name: str) -> None:
    question = {"prompt": "a", "n_predict": 1, "dry_multiplier": 1, "repeat_penalty": 2, name: 2**31 - 1}
    status, body, _ = server.request("POST", "/completion", json.dumps(question))
    assert (status, name.encode() in body) == (400, True)


def test_deep_json_is_refused(server: RunningServer) -> None:
    schema = '{"items":' * 20_000 + "{}" + "}" * 20_000
    for body in (
        f'{{"prompt":"a","n_predict":1,"json_schema":{schema}}}',
        "[" * 200_000,
        '{"prompt":' + "[" * 300,
    ):
        status, answer, _ = server.request("POST", "/completion", body)
        assert (status, b"nested too deeply" in answer) == (400, True)
    question = {"prompt": "[" * 300 + '"{' * 50, "n_predict": 1}
    assert server.ask("/completion", question)["tokens_predicted"] == 1
