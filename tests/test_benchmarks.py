"""The benchmarks: what they read, compute and write, and one small run."""

from __future__ import annotations

import argparse
import ast
import asyncio
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from statistics import median

import msgpack
import numpy as np
import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.uri import parse_uri

from benchmarks.__main__ import PARTS, main
from benchmarks.arguments import port_number
from benchmarks.failures import BenchmarkError
from benchmarks.floor import CONSTANT_BODY, Echo, Floor
from benchmarks.load import check_answered, check_wrk, parse_wrk
from benchmarks.machine import LOAD
from benchmarks.measures import starts
from benchmarks.measures.batches import BODIES, check_columns
from benchmarks.measures.one_row import KINDS, rows_of
from benchmarks.measures.stages import FLOOR, LOG, WHOLE
from benchmarks.peers.network import Network
from benchmarks.peers.observation import Observation
from benchmarks.plot import draw
from benchmarks.processes import free_ports, started
from benchmarks.progress import number
from benchmarks.report import BUSY, render
from benchmarks.results import (
    BatchCell,
    Cell,
    EngineCell,
    LoopCell,
    Results,
    RowCell,
    Stage,
    Start,
    StreamCell,
)
from benchmarks.soak.mistakes import MISTAKES
from benchmarks.subjects import OBSERVATION, ROOT, SUBJECTS, Workplace
from benchmarks.targets import outcomes
from benchmarks.websocket import BINARY, TEXT, connected, encode_frame, read_frames
from benchmarks.workplace import clean_environment
from policy_server.observations import ObservationSpace
from policy_server.schema import read_schema
from tests.support.servers import in_thread
from tests.support.waiting import wait_until

# What Debian's wrk 4.1.0 printed.
FINE = """Running 2s test @ http://127.0.0.1:8731/predict
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.73ms    2.44ms  22.54ms   89.13%
    Req/Sec     8.98k     1.62k   12.14k    70.00%
  Latency Distribution
     50%    2.95ms
     75%    4.21ms
     90%    6.42ms
     99%   14.57ms
  17949 requests in 2.01s, 3.63MB read
Requests/sec:   8938.54
Transfer/sec:      1.81MB
"""
REFUSED = """Running 1s test @ http://127.0.0.1:8731/predict
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   434.93us    1.19ms  14.38ms   92.49%
    Req/Sec     6.93k     2.20k   10.61k    70.00%
  Latency Distribution
     50%  128.00us
     75%  164.00us
     90%  824.00us
     99%    5.53ms
  6917 requests in 1.00s, 1.57MB read
  Non-2xx or 3xx responses: 6917
Requests/sec:   6887.99
Transfer/sec:      1.57MB
"""
SLOW = """Running 4s test @ http://127.0.0.1:8799/
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.20s   100.53ms   1.30s    66.67%
    Req/Sec     1.00      0.00     1.00    100.00%
  Latency Distribution
     50%    1.20s
     75%    1.25s
     90%    1.30s
     99%    1.30s
  6 requests in 4.01s, 0.88KB read
  Socket errors: connect 0, read 3, write 1, timeout 2
Requests/sec:      1.50
Transfer/sec:     225.00B
"""
NOTHING = """Running 1s test @ http://127.0.0.1:8799/
  1 threads and 2 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.00us    0.00us   0.00us    -nan%
    Req/Sec     0.00      0.00     0.00      -nan%
  Latency Distribution
     50%    0.00us
     75%    0.00us
     90%    0.00us
     99%    0.00us
  0 requests in 1.00s, 0.00B read
Requests/sec:      0.00
Transfer/sec:       0.00B
"""
PROBABILITIES = (0.7, 0.2, 0.06, 0.04)


# wrk


@pytest.mark.parametrize(
    ("text", "rate", "latencies_ms", "errors"),
    [
        pytest.param(FINE, 8938.54, (2.95, 6.42, 14.57), 0, id="milliseconds"),
        pytest.param(REFUSED, 6887.99, (0.128, 0.824, 5.53), 6917, id="microseconds-and-refusals"),
        pytest.param(SLOW, 1.5, (1200.0, 1300.0, 1300.0), 6, id="seconds-and-socket-errors"),
    ],
)
def test_output_of_wrk_is_read(
    text: str, rate: float, latencies_ms: tuple[float, float, float], errors: int
) -> None:
    load = parse_wrk(text)

    assert (load.requests_per_s, load.errors) == (rate, errors)
    assert (load.p50_ms, load.p90_ms, load.p99_ms) == latencies_ms


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NOTHING, id="no-answer"),
        pytest.param("unable to connect to 127.0.0.1:8739 Connection refused\n", id="nobody"),
        pytest.param("", id="empty"),
        pytest.param(FINE.replace("99%", "98%"), id="no-percentile"),
    ],
)
def test_output_of_wrk_without_figures_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"^wrk: "):
        parse_wrk(text)


def test_load_with_errors_is_no_figure() -> None:
    assert check_answered(parse_wrk(FINE)) == parse_wrk(FINE)
    with pytest.raises(BenchmarkError, match="wrk: 6917 errors beside 6917 answers"):
        check_answered(parse_wrk(REFUSED))


def test_servers_start_as_with_no_variable_of_theirs_or_of_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "POLICY_SERVER_BACKEND", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LANG", "C.UTF-8")

    kept = clean_environment()

    assert kept["LANG"] == "C.UTF-8"
    assert not [name for name in kept if name.startswith(("PYTHON", "POLICY_SERVER_", "RAY_"))]


def test_missing_wrk_is_one_line_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BenchmarkError) as caught:
        check_wrk()

    assert str(caught.value) == "wrk is not there; on Debian and Ubuntu: apt-get install wrk"


# Results


def cell(subject: str, connections: int, rate: float, *, round: int = 0, errors: int = 0) -> Cell:  # noqa: A002 -- the attribute's name
    return Cell(
        subject=subject,
        connections=connections,
        round=round,
        requests_per_s=rate,
        p50_ms=1000 * connections / rate,
        p99_ms=3000 * connections / rate,
        errors=errors,
        cpu_us={"web": 60.0, "wrk": 7.0},
        stages={"validate": 4.0, "total": 900.0, "batch": 50.5} if subject == "ray" else {},
    )


def results_of(*cells: Cell) -> Results:
    return Results(
        machine={"cores": "2"},
        options={"connections": [1, 128]},
        titles={name: subject.title for name, subject in SUBJECTS.items()},
        groups={name: subject.group for name, subject in SUBJECTS.items()},
        cells=list(cells),
    )


def whole_results() -> Results:
    results = results_of(
        *(cell("ray", 128, rate, round=n) for n, rate in enumerate((6000.0, 5000.0, 9000.0))),
        cell("ray", 1, 600.0),
        cell("ray-call", 128, 250.0),
        cell("mlserver", 128, 1000.0),
        cell("bentoml", 128, 800.0),
        cell("local", 128, 12_000.0),
        *(cell("floor", 128, 16_000.0, round=number) for number in range(3)),
        *(cell("local-logs", 128, 9_600.0, round=number) for number in range(3)),
    )
    results.batches = [
        BatchCell("ray", "npy", 10_000, 0, 900_000.0, 11.0, None),
        BatchCell("ray", "npy", 100_000, 0, 390_000.0, 250.0, 2.5, 4.0),
        BatchCell("ray", "JSON columns", 100_000, 0, 300_000.0, 330.0, 1.5, 3.5),
        BatchCell("ray", "JSON columns", 100_000, 1, 300_000.0, 330.0, 1.7, 1.5),
        BatchCell("ray", "JSON rows", 100_000, 0, 140_000.0, 700.0, 1.5, 3.0),
        BatchCell("local", "npy", 100_000, 0, 410_000.0, 240.0, 0.9),
    ]
    results.streams = [
        StreamCell("local", "msgpack", 64, 0, 21_000.0, 2.9),
        StreamCell("local", "JSON", 1, 0, 6_000.0, 0.15, 90.0),
        StreamCell("floor", "JSON", 1, 0, 24_000.0, 0.04, 20.0),
    ]
    results.loops = [
        LoopCell("stream over UNIX socket", 200.0, 0, 0.2, 0.31, 1.5, 3),
        LoopCell("stream over UNIX socket", 200.0, 0, 0.4, 0.62, 3, 6, subject="ray"),
    ]
    results.starts = [
        Start("ray", is_first=True, round=0, seconds=21.5, memory_mb=1200.0, processes=13),
        Start("ray", is_first=False, round=0, seconds=3.5, memory_mb=700.0, processes=11),
        Start("ray-no-dashboard", is_first=False, round=0, seconds=3, memory_mb=610, processes=8),
    ]
    results.engines = [EngineCell("numpy", 1, 9.0, 80.0), EngineCell("tensorflow", 1, None, 300.0)]
    results.stages = [Stage(WHOLE, 128, 33.3), Stage(LOG, 128, 1.4), Stage(FLOOR, 128, 3.2)]
    results.rows = [RowCell("Discrete(4)", 5.0, 6.0, 4.0, 16.0), RowCell("Box(6)", 5, 9, 12, 28)]
    results.missing = {"pytriton": "pip can't install it"}
    return results


def test_median_is_that_of_the_rounds() -> None:
    assert whole_results().median_of("ray", 128, "requests_per_s") == 6000.0


def test_a_round_with_errors_takes_the_median_away() -> None:
    results = results_of(cell("ray", 128, 6000.0), cell("ray", 128, 6000.0, round=1, errors=3))

    assert results.median_of("ray", 128, "requests_per_s") is None
    assert "| Policy Server, Ray | 3 errors |" in render(results)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = whole_results()

    results.write(tmp_path / "benchmark.json")

    assert Results.read(tmp_path / "benchmark.json") == results


def outcome_of(results: Results, title: str) -> tuple[float | None, bool | None]:
    found = {item.target.title: item for item in outcomes(results)}[title]
    return found.measured, found.is_met


@pytest.mark.parametrize(
    ("title", "measured", "is_met"),
    [
        ("req/s with Ray against one Ray call a request, 128 connections", 24.0, False),
        ("req/s with Ray against the best peer, 128 connections", None, None),
        ("req/s with Ray against the best peer, 32 connections", None, None),
        ("req/s local against the floor, 128 connections", 0.75, True),
        ("req/s with Ray against the floor, 128 connections", 0.375, False),
        (
            "p99 with Ray, 128 connections, in the floor's (medians of the same rounds)",
            *(16 / 6, False),
        ),
        (
            "req/s local and the access log against those without it, 128 connections",
            *(0.8, False),
        ),
        (
            "p90 of single predictions beside large batches, with Ray, the worst of their bodies",
            *(4.0, False),
        ),
        (
            "p90 of single predictions beside large batches, local, the worst of their bodies",
            *(None, None),
        ),
        ("one row of a policy of two layers of 64, Discrete(4)", 16.0, True),
        ("one row of a policy of two layers of 64, Box(6)", 28.0, False),
        ("one row of a policy of two layers of 64, six binary actions", None, None),
        ("memory of all processes with Ray, without its dashboard", 610.0, False),
        ("req/s local against bare ASGI under uvicorn, 128 connections", None, None),
        ("p50 with Ray, 1 connection", 1000 / 600, True),
        (
            "round trips/s of a stream, one in flight, local, against the bare echo",
            *(0.25, False),
        ),
        ("p50 of a stream, one in flight, local", 0.15, False),
        ("p50 of a stream, one in flight, with Ray", None, None),
        ("p99 with Ray, 128 connections", 64.0, False),
        ("batch route, npy", 410_000.0, True),
        ("batch route, JSON rows", 140_000.0, False),
        ("first answer with Ray", 3.5, True),
        ("first answer with Ray, of a policy never served before", 21.5, False),
        ("memory of all processes with Ray", 700.0, True),
    ],
)
def test_target_is_held_against_the_run(
    title: str,
    measured: float | None,
    is_met: bool | None,  # noqa: FBT001 -- pytest gives it by name
) -> None:
    found, is_reached = outcome_of(whole_results(), title)

    assert found == (None if measured is None else pytest.approx(measured))
    assert is_reached is is_met


def test_p99_is_held_against_the_floors_of_the_same_rounds_only() -> None:
    results = whole_results()
    results.cells = [item for item in results.cells if (item.subject, item.round) != ("floor", 2)]

    title = "p99 with Ray, 128 connections, in the floor's (medians of the same rounds)"

    assert outcome_of(results, title) == (None, None)


@pytest.mark.parametrize(
    ("rate", "is_met"), [(10_300.0, True), (10_100.0, False)], ids=["0.858", "0.842"]
)
@pytest.mark.parametrize("way", ["local", "with Ray"])
@pytest.mark.parametrize("connections", [1, 32, 128])
def test_access_log_costs_no_more_than_its_share(
    way: str,
    connections: int,
    rate: float,
    is_met: bool,  # noqa: FBT001 -- pytest gives it by name
) -> None:
    subject = "local" if way == "local" else "ray"
    results = results_of(
        cell(subject, connections, 12_000.0), cell(f"{subject}-logs", connections, rate)
    )
    word = "connection" if connections == 1 else "connections"

    measured, is_reached = outcome_of(
        results, f"req/s {way} and the access log against those without it, {connections} {word}"
    )

    assert measured == rate / 12_000
    assert is_reached is is_met


BEST_PEER = "req/s with Ray against the best peer, 128 connections"
PEERS = [name for name, subject in SUBJECTS.items() if subject.group == "peer"]


def peers_results() -> Results:
    """Return a run in which the first peer is the fastest."""
    rates = [2900.0, *[300.0] * (len(PEERS) - 1)]
    peers = [cell(name, 128, rate) for name, rate in zip(PEERS, rates, strict=True)]
    return results_of(cell("ray", 128, 20_000.0), *peers)


def test_best_peer_is_the_fastest_of_all() -> None:
    assert outcome_of(peers_results(), BEST_PEER) == (20_000 / 2900, False)


def test_best_peer_is_not_known_where_one_had_errors() -> None:
    results = peers_results()
    results.cells = [
        replace(item, errors=1) if item.subject == PEERS[0] else item for item in results.cells
    ]

    assert outcome_of(results, BEST_PEER) == (None, None)


def test_best_peer_is_not_known_where_one_was_not_measured() -> None:
    results = peers_results()
    results.cells = [item for item in results.cells if item.subject != PEERS[0]]

    assert outcome_of(results, BEST_PEER) == (None, None)
    lacking = SUBJECTS[PEERS[0]].title
    assert f"on 128 connections no figure without errors of {lacking}." in render(results)


def test_page_names_the_peers_that_were_compared() -> None:
    titles = "; ".join(SUBJECTS[name].title for name in PEERS)

    assert f"The best peer is the fastest of {titles}." in render(peers_results())


@pytest.mark.parametrize("lacking", BODIES)
def test_p90_beside_batches_is_not_known_without_all_kinds_of_bodies(lacking: str) -> None:
    results = whole_results()
    results.batches = [
        BatchCell("ray", body, 100_000, 0, 390_000.0, 250.0, 2.5, 2.0) for body in BODIES
    ]
    title = "p90 of single predictions beside large batches, with Ray, the worst of their bodies"
    assert outcome_of(results, title) == (2.0, True)

    results.batches = [item for item in results.batches if item.body != lacking]

    assert outcome_of(results, title) == (None, None)


# The page and the picture


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (12_345.6, "12,346"),
        (99.96, "100"),
        (2.3456, "2.35"),
        (0.1284, "0.128"),
        (0, "0"),
    ],
)
def test_figure_is_shown_with_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_page_shows_every_part_of_a_run() -> None:
    page = render(whole_results())

    assert "| Policy Server, Ray | 600 (1.67 / 5) | 6,000 (21.3 / 64) |" in page
    assert "| FastAPI, one Ray call a request | - | 24 x |" in page
    assert "| batch route, npy | ≥ 400,000 rows/s | 410,000 rows/s | met |" in page
    assert "| Policy Server, Ray, 128 | 60 | - | - | 7 |" in page
    assert "| Policy Server, Ray, 128 | 4 | - | - | 900 | 50.5 |" in page
    assert "the running server's time less that | 26.7 |" in page
    assert "the running floor's time less that | 56.8 |" in page
    assert "| Policy Server, Ray | npy | 100,000 | 390,000 | 250 | 2.5 | 4 |" in page
    assert "| Policy Server, Ray | JSON columns | 100,000 | 300,000 | 330 | 1.6 | 2.5 |" in page
    assert "| Policy Server, local | npy | 100,000 | 410,000 | 240 | 0.9 | - |" in page
    assert "| Policy Server, Ray, without its dashboard | served before | 3 | 610 | 8 |" in page
    assert "| Discrete(4) | 5 | 6 | 4 | 16 |" in page
    assert "req/s (p50 / p99 in ms), medians over 3 rounds:" in page
    assert "latencies are medians over 3 rounds, the floor's like the servers'." in page
    assert "the server's own protocol answers requests in one process" in page
    assert "| Policy Server, local | msgpack | 64 | 21,000 | 2.9 | - |" in page
    assert "| Policy Server, local | JSON | 1 | 6,000 | 0.15 | 90 |" in page
    assert "| Policy Server, local, stream over UNIX socket | 200 | 0.2 | 0.31 | 1.5 | 3 |" in page
    assert "| Policy Server, Ray, stream over UNIX socket | 200 | 0.4 | 0.62 | 3 | 6 |" in page
    assert "| Policy Server, Ray | served before | 3.5 | 700 | 11 |" in page
    assert "| tensorflow: the network | - |" in page
    assert "- PyTriton: pip can't install it" in page


@pytest.mark.parametrize("load", ["0.2", "1.4"], ids=["quiet", "busy"])
def test_page_and_picture_say_that_the_machine_was_busy(load: str) -> None:
    results = whole_results()
    results.machine[LOAD] = load

    assert (BUSY in render(results)) is (load == "1.4")
    assert ("busy machine" in draw(results)) is (load == "1.4")


def test_page_of_one_part_has_no_empty_table() -> None:
    page = render(results_of(cell("local", 8, 100.0)))

    assert "req/s (p50 / p99 in ms), of one round:" in page
    assert "## Requests a second" in page
    assert "## Batch route" not in page
    assert "## Engines" not in page


def test_picture_has_a_bar_for_each_figure() -> None:
    picture = draw(whole_results())

    root = ElementTree.fromstring(picture)  # noqa: S314 -- we have just drawn it
    texts = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "6,000" in texts
    assert texts.count("not measured") == 5
    assert "FastAPI's" not in picture


def test_start_of_a_policy_that_failed_to_start_is_not_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(SUBJECTS["local"], command=lambda _workplace, _ports: ["false"])
    monkeypatch.setitem(SUBJECTS, "local", broken)
    workplace = Workplace(tmp_path, tmp_path, tmp_path, tmp_path, PROBABILITIES)
    told: list[str] = []
    results = Results()
    monkeypatch.setattr(starts, "say", told.append)

    starts.measure_starts(results, workplace, {}, subjects=["local"], repeats=1)

    assert len(told) == 1
    assert list(results.missing) == ["start of local"]


# What is sent and what comes back


def test_body_of_each_kind_holds_the_same_observations() -> None:
    rows = json.loads(BODIES["JSON rows"](3).body)
    columns = json.loads(BODIES["JSON columns"](3).body)
    array = np.load(io.BytesIO(BODIES["npy"](3).body))

    assert rows[0] == OBSERVATION
    assert {name: [row[name] for row in rows] for name in OBSERVATION} == columns
    assert array.tolist() == [list(row.values()) for row in rows]
    assert array.dtype == np.float32


def _columns(kind: str, rows: int, probability: float) -> bytes:
    if kind != "npy":
        return json.dumps({"actions": [[1]] * rows, "probability": [probability] * rows}).encode()
    buffer = io.BytesIO()
    np.save(buffer, np.tile(np.array([1, probability], np.float32), (rows, 1)))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", BODIES)
def test_answer_of_a_batch_is_held_against_the_policy(kind: str) -> None:
    check_columns(_columns(kind, 3, 0.2), 3, kind, PROBABILITIES)

    with pytest.raises(BenchmarkError, match="1 answers for 3 rows"):
        check_columns(_columns(kind, 1, 0.2), 3, kind, PROBABILITIES)
    with pytest.raises(BenchmarkError, match=r"action 1 with probability 0\.7"):
        check_columns(_columns(kind, 3, 0.7), 3, kind, PROBABILITIES)


@pytest.mark.parametrize(
    "body",
    [
        b'{"actions": [[7]], "probability": [0.04]}',
        b'{"actions": [[-1]], "probability": [0.04]}',
        b'{"actions": [], "probability": []}',
        b"[]",
        b"<html>",
    ],
    ids=["no-such-action", "negative", "none", "list", "no-json"],
)
def test_answer_of_a_batch_of_another_form_is_one_line(body: bytes) -> None:
    with pytest.raises(BenchmarkError, match="JSON rows: "):
        check_columns(body, 1, "JSON rows", PROBABILITIES)


@pytest.mark.parametrize(
    ("body", "is_right"),
    [
        (b'{"actions": [0], "probability": 0.7}', True),
        (b'{"actions": [0], "probability": 0.2}', False),
        (b'{"actions": [4], "probability": 0.7}', False),
        (b'{"detail": "overloaded"}', False),
        (b"<html>", False),
    ],
    ids=["right", "wrong-probability", "no-such-action", "an-error", "no-json"],
)
def test_answer_of_a_subject_is_held_against_the_policy(
    body: bytes,
    is_right: bool,  # noqa: FBT001 -- pytest gives it by name
    tmp_path: Path,
) -> None:
    workplace = Workplace(tmp_path, tmp_path, tmp_path, tmp_path, PROBABILITIES)

    if is_right:
        SUBJECTS["local"].check_answer(body, workplace)
    else:
        with pytest.raises(BenchmarkError, match=r"^local: "):
            SUBJECTS["local"].check_answer(body, workplace)


@pytest.mark.parametrize(("name", "port"), [("ray", "3"), ("ray-no-dashboard", "0")])
def test_dashboard_runs_but_where_it_is_turned_off(name: str, port: str, tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, tmp_path, tmp_path, tmp_path, PROBABILITIES)

    variables = SUBJECTS[name].environment(workplace, [1, 2, 3])

    assert variables["POLICY_SERVER_BACKEND"] == "ray"
    assert variables["POLICY_SERVER_DASHBOARD_PORT"] == port


def test_one_row_is_measured_for_each_kind_of_actions() -> None:
    cells = rows_of(rounds=1, block_s=0.001)

    assert [item.actions for item in cells] == list(KINDS)
    for item in cells:
        parts = (item.network_us, item.draw_us, item.json_us)
        assert all(0 < part < 100_000 for part in (*parts, item.call_us))


def test_observation_of_peers_is_the_schemas() -> None:
    schema = read_schema(ROOT / "examples" / "mouse_and_cheese" / "schema.yaml")
    space = ObservationSpace(schema.observations)
    body = json.dumps(OBSERVATION).encode()

    assert Observation.model_validate_json(body).row() == space.parse_named(body)
    assert schema.api_key == SUBJECTS["local"].request.headers["access-token"]


def test_network_of_peers_draws_by_its_logits() -> None:
    logits = np.log(np.array(PROBABILITIES, np.float32))
    network = Network([(np.zeros((6, 4), np.float32), logits)])

    actions, chances = network.draw(np.zeros((20_000, 6), np.float32))

    shares = np.bincount(actions, minlength=4) / len(actions)
    assert shares == pytest.approx(PROBABILITIES, abs=0.02)
    assert chances == pytest.approx(np.array(PROBABILITIES)[actions])


# WebSocket frames


@pytest.mark.parametrize("length", [5, 125, 126, 300])
def test_frame_of_a_client_is_masked_by_zeros(length: int) -> None:
    frame = encode_frame(TEXT, b"x" * length)

    assert frame[0] == 0x81
    assert frame[1] & 0x80
    assert frame.endswith(bytes(4) + b"x" * length)
    assert len(frame) == length + (6 if length < 126 else 8)


def test_frames_of_a_server_are_read_as_they_arrive() -> None:
    long = bytes([0x80 | BINARY, 126]) + struct.pack("!H", 300) + b"y" * 300
    stream = bytes([0x80 | TEXT, 2]) + b"ok" + long
    buffer = bytearray()
    frames = []

    for byte in stream:
        buffer.append(byte)
        frames += read_frames(buffer)

    assert frames == [(TEXT, b"ok"), (BINARY, b"y" * 300)]
    assert not buffer


@contextmanager
def echo_server() -> Iterator[int]:
    """Answer each frame with itself to those who have the key; yield the port."""

    def echo(link: ServerConnection) -> None:
        for message in link:
            link.send(message)

    def check(link: ServerConnection, request: Request) -> Response | None:
        is_known = request.headers.get("access-token") == "key"
        return None if is_known else link.respond(HTTPStatus.FORBIDDEN, "no key")

    with (
        serve(echo, "127.0.0.1", 0, process_request=check) as server,
        in_thread(server.serve_forever, server.shutdown),
    ):
        yield server.socket.getsockname()[1]


@pytest.mark.parametrize("payload", [b'{"cat": 1}', b"z" * 500], ids=["short", "long"])
def test_round_trips_are_counted(payload: bytes) -> None:
    frame = encode_frame(BINARY, payload)

    with echo_server() as port, connected(port, "/", {"access-token": "key"}) as connection:
        answer = connection.ask(frame)
        rate, p50_ms = connection.round_trips(frame, in_flight=8, seconds=0.2)

    assert answer == payload
    # Eight are in flight all the time.
    assert rate * p50_ms / 1000 == pytest.approx(8, rel=0.9)


@pytest.mark.parametrize(
    "payload",
    [b'{"status":503,"detail":"overloaded"}', msgpack.packb({"status": 503, "detail": "busy"})],
    ids=["JSON", "msgpack"],
)
def test_error_of_a_stream_is_no_round_trip(payload: bytes) -> None:
    frame = encode_frame(BINARY, payload)

    with (
        echo_server() as port,
        pytest.raises(BenchmarkError, match=r"the stream answered an error: .*503|.*busy"),
        connected(port, "/", {"access-token": "key"}) as connection,
    ):
        connection.round_trips(frame, in_flight=1, seconds=0.1)


def test_refused_handshake_is_one_line() -> None:
    with (
        echo_server() as port,
        pytest.raises(BenchmarkError, match=r"^WS /predict/stream: answered 403 Forbidden$"),
        connected(port, "/predict/stream", {}),
    ):
        pass


# Processes


def test_all_processes_of_a_server_are_found_and_ended(tmp_path: Path) -> None:
    # The inner one outlives its parent and has a session of its own, as Ray's may.
    program = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '60']); time.sleep(60)"

    with started(
        [sys.executable, "-c", program], environment={}, folder=tmp_path, log=tmp_path / "log"
    ) as server:

        def has_both() -> bool:
            server.check_alive()
            return len(server.pids()) == 2

        wait_until(has_both)
        size, processes = server.memory_bytes()
        assert server.cpu_by_role()["web"] >= 0

    assert processes == 2
    assert size > 1_000_000
    assert server.pids() == []


def test_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('port is taken')"]

    with started(command, environment={}, folder=tmp_path, log=tmp_path / "log") as server:
        server.process.wait()
        with pytest.raises(BenchmarkError, match="ended with 1: port is taken"):
            server.check_alive()


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5


# The command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--subjects", "triton"], "triton: choose from ray, ray-logs"),
        (["--connections", "1,x"], "1,x: expected numbers like 1,32,128"),
        (["--seconds", "0"], "0: expected a whole number from 1"),
    ],
    ids=["subject", "connections", "seconds"],
)
def test_wrong_option_is_explained(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)

    assert says in capsys.readouterr().err


def test_page_and_picture_are_made_again_from_the_results(tmp_path: Path) -> None:
    whole_results().write(tmp_path / "benchmark.json")

    main(["--render-only", "--output", str(tmp_path)])

    assert (tmp_path / "benchmark.md").read_text() == render(whole_results())
    assert (tmp_path / "benchmark.svg").read_text() == draw(whole_results())


def test_committed_run_can_be_rendered_though_it_has_not_all_parts_of_today() -> None:
    results = Results.read(ROOT / "benchmarks" / "results" / "benchmark.json")

    assert len(results.cells) > 100
    assert "| Policy Server, local |" in render(results)


def test_nothing_to_render_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"benchmark\.json: is not there"):
        main(["--render-only", "--output", str(tmp_path)])


@pytest.mark.service
def test_a_run_measures_and_writes(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        pytest.fail("wrk is missing; on Debian and Ubuntu: apt-get install wrk")
    options = ["--subjects", "floor,bare-asgi", "--parts", "requests", "--connections", "2"]
    more = ["--seconds", "1", "--repeats", "1", "--output", str(tmp_path)]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.read(tmp_path / "benchmark.json")
    assert [item.subject for item in results.cells] == ["floor", "bare-asgi"]
    assert all(item.requests_per_s > 100 for item in results.cells)
    assert all(item.errors == 0 for item in results.cells)
    assert all(item.cpu_us["web"] > 0 for item in results.cells)
    assert not results.missing
    assert "a constant answer" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.svg").exists()


@pytest.mark.parametrize("text", ["0", "99999", "-1", "1.5", "http"])
def test_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a port, from 1 to 65535"):
        port_number(text)


def test_floor_says_in_a_line_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.floor", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert done.returncode == 1
    assert done.stderr == (f"benchmarks.floor: port {port} can't be used: Address already in use\n")


@pytest.mark.parametrize("text", ["nan", "0", "-3", "1,2", "1.5"])
def test_length_that_is_none_is_refused_as_one_number(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--seconds", text])

    assert f"{text}: expected a whole number from 1" in capsys.readouterr().err


# Documentation and layers


def _table(title: str) -> list[list[str]]:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    text = page.partition(f"## {title}\n")[2].partition("\n##")[0]
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def test_page_names_every_subject_and_no_other() -> None:
    assert [row[0] for row in _table("Subjects")] == list(SUBJECTS)


def test_page_names_every_part_and_no_other() -> None:
    assert sorted(row[0] for row in _table("What is measured")) == sorted(PARTS)


def test_page_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    usage = " ".join(capsys.readouterr().out.split())

    table = {row[0]: row[1] for row in _table("Options")}

    assert set(re.findall(r"--[a-z-]+", usage)) - {"--help"} == set(table)
    for default in table.values():
        assert default == "off" or f"default: {default}" in usage


def test_every_peer_has_its_requirements_and_no_other_file_is_there() -> None:
    files = {
        path.stem.removeprefix("requirements-")
        for path in (ROOT / "benchmarks").glob("requirements-*.txt")
    }

    assert files == {item.peer for item in SUBJECTS.values()} - {None}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "peers").glob("[a-z]*.py")), ids=lambda path: path.stem
)
def test_peers_do_without_policy_server(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }

    assert imported
    assert not any(name.startswith("policy_server") for name in imported)
    assert all(
        name.startswith("benchmarks.peers") for name in imported if name.startswith("benchmarks")
    )


def test_constant_answer_is_the_policys() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert CONSTANT_BODY.decode() in readme


class Answers(asyncio.Transport):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert bytes(data).endswith(CONSTANT_BODY)
        self.count += 1


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_floor_answers_requests_however_they_are_cut(size: int) -> None:
    schema = read_schema(ROOT / "examples" / "mouse_and_cheese" / "schema.yaml")
    body = json.dumps(OBSERVATION).encode()
    requests = 3 * (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    floor, answers = Floor(ObservationSpace(schema.observations)), Answers()
    floor.connection_made(answers)

    for start in range(0, len(requests), size):
        floor.data_received(requests[start : start + size])

    assert answers.count == 3


class Echoes(asyncio.Transport):
    """Hands what is written to a client of web sockets."""

    def __init__(self, client: ClientProtocol) -> None:
        super().__init__()
        self._client = client
        self.protocol: asyncio.BaseProtocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._client.receive_data(bytes(data))


def test_floor_answers_the_frames_of_a_web_socket() -> None:
    client = ClientProtocol(parse_uri("ws://server/predict/stream"))
    transport, floor = Echoes(client), Floor(ObservationSpace(None))
    floor.connection_made(transport)

    client.send_request(client.connect())
    floor.data_received(b"".join(client.data_to_send()))
    client.send_text(b"{}")
    client.send_binary(b"\x80")
    echo = transport.protocol
    assert isinstance(echo, Echo)
    echo.data_received(b"".join(client.data_to_send()))

    frames = [event for event in client.events_received() if isinstance(event, Frame)]
    assert [frame.opcode for frame in frames] == [Opcode.TEXT, Opcode.BINARY]
    assert bytes(frames[0].data) == CONSTANT_BODY
    assert msgpack.unpackb(bytes(frames[1].data)) == json.loads(CONSTANT_BODY)


def test_page_has_the_shares_of_the_floor_of_the_committed_run() -> None:
    results = Results.read(ROOT / "benchmarks" / "results" / "benchmark.json")
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split())

    def shares(subject: str) -> str:
        rates = [
            [results.median_of(name, count, "requests_per_s") for name in (subject, "floor")]
            for count in (1, 32, 128)
        ]
        return "{:.2f}, {:.2f} and {:.2f}".format(*(a / b for a, b in rates if a and b))

    assert f"a local server answered {shares('local')} of the floor's requests" in page
    assert f"one with Ray {shares('ray')} (0.22, 0.40 and 0.45)" in page


def test_reliability_page_counts_the_mistakes() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")

    assert f" {len(MISTAKES)} kinds of mistakes" in page


def test_scaling_page_has_the_figures_of_the_committed_run() -> None:
    results = Results.read(ROOT / "benchmarks" / "results" / "benchmark.json")
    page = (ROOT / "docs" / "scaling.md").read_text()

    def cost(subject: str, connections: int, process: str) -> float:
        return median(cell.cpu_us[process] for cell in results.cells_of(subject, connections))

    def shared(subject: str) -> float:
        return median(cell.stages["batch"] for cell in results.cells_of(subject, 128))

    for row, subject, process in (
        ("web process, with Ray", "ray", "web"),
        ("replica", "ray", "replica"),
        ("web process, local", "local", "web"),
    ):
        alone, together = cost(subject, 1, process), cost(subject, 128, process)
        each_call = (alone - together) / (1 - 1 / shared(subject))
        assert (
            f"| {row} | {alone - each_call:.1f} | {each_call:.0f} / n | {alone:.0f} | "
            f"{together:.1f} |"
        ) in page
    for row, subject in (
        ("local, one worker", "local"),
        ("local, `--workers 2`", "local-workers-2"),
        ("Ray, one worker, one replica", "ray"),
        ("Ray, one worker, two replicas", "ray-2"),
    ):
        rate, *latencies = (
            results.median_of(subject, 128, value)
            for value in ("requests_per_s", "p50_ms", "p99_ms")
        )
        assert rate is not None
        assert f"| {row} | {rate:,.0f} (" in page
        shown = re.search(rf"\| {re.escape(row)} \| [\d,]+ \(([\d.]+) / ([\d.]+)\) \|", page)
        assert shown is not None
        assert [float(text) for text in shown.groups()] == pytest.approx(latencies, abs=0.006)
