"""The soak's parts: what it counts, how it judges, what it draws."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.failures import BenchmarkError
from benchmarks.processes import ProcessFigures, started
from benchmarks.soak.__main__ import main
from benchmarks.soak.expected import Case, Expected, is_same
from benchmarks.soak.home import drawn_observation, flat
from benchmarks.soak.picture import draw
from benchmarks.soak.questions import ask_one, draw_one
from benchmarks.soak.raw import connected, encode_request
from benchmarks.soak.record import Record
from benchmarks.soak.samples import Figures, Sample, stored_bytes
from benchmarks.soak.traffic import Scenario, ScenarioCounts, Traffic, Trouble, Visitor
from benchmarks.soak.verdict import find_growth, judge
from tests.support.waiting import until, wait_until

ANSWER = {"actions": [2], "probability": 0.75, "log_probability": -0.28768}
DISTRIBUTION = {"components": [{"kind": "categorical", "probabilities": [0.25, 0.75]}]}
CASE = Case(
    "stock",
    [1.0, 2.0],
    7,
    {"predict": ANSWER, "predict_deterministic": ANSWER, "distribution": DISTRIBUTION},
)


def sample(
    number: int, *, memory_mb: float = 200.0, files: int = 20, is_quiet: bool = True
) -> Sample:
    """Return the sample of a minute."""
    figures = {"web": Figures(memory_mb, files, 10, 1)}
    return Sample(60.0 * number, 5000 * number, figures, 1.0, None, is_quiet)


def run(*samples: Sample, failed: int = 0) -> Record:
    """Return a run with these samples, or with twelve that are all the same."""
    taken = samples or tuple(sample(number) for number in range(1, 13))
    machine = {
        "date": "today",
        "commit": "abc",
        "cores": "2",
        "processor": "any",
        "load average before the run": "0.1",
    }
    counts = {"one observation": ScenarioCounts(90, 5, 5, failed)}
    return Record(machine, "local", 12.0, 8, counts, ("told",) * bool(failed), taken)


def broken(record: Record) -> list[str]:
    """Return what of a run does not hold."""
    return [each.subject for each in judge(record) if not each.holds]


# The rule


def test_run_that_stays_as_it_was_holds() -> None:
    assert broken(run()) == []


def test_memory_that_grows_after_the_warm_up_does_not_hold() -> None:
    samples = [sample(number, memory_mb=200 + number) for number in range(1, 13)]

    assert broken(run(*samples)) == ["web: memory"]


def test_memory_that_grows_in_the_warm_up_alone_holds() -> None:
    samples = [sample(number, memory_mb=min(100 + 50 * number, 250)) for number in range(1, 13)]

    assert broken(run(*samples)) == []


def with_clients(taken: Sequence[Sample], memory_mb: Callable[[float], float]) -> list[Sample]:
    """Put a sample with clients, half a minute before, in front of each."""
    mixed = []
    for each in taken:
        roles = {
            role: replace(figures, memory_mb=memory_mb(figures.memory_mb))
            for role, figures in each.roles.items()
        }
        mixed += [replace(each, seconds=each.seconds - 30, roles=roles, is_quiet=False), each]
    return mixed


def test_freed_memory_that_is_given_back_after_a_sample_is_no_growth() -> None:
    # The last ones hold more, and no longer while the clients are there again.
    samples = [sample(number, memory_mb=200 + 50 * (number > 8)) for number in range(1, 13)]

    assert broken(run(*with_clients(samples, lambda _: 200.0))) == []


def test_memory_that_grows_with_clients_and_without_does_not_hold() -> None:
    samples = [sample(number, memory_mb=200 + number) for number in range(1, 13)]

    assert broken(run(*with_clients(samples, lambda quiet: quiet - 0.5))) == ["web: memory"]


def test_memory_of_a_moment_with_fewer_processes_does_not_count() -> None:
    samples = [sample(number, memory_mb=200 + number) for number in range(1, 13)]
    fewer = [
        replace(each, roles={"web": Figures(150.0, 20, 10, 0)}) if not each.is_quiet else each
        for each in with_clients(samples, lambda quiet: quiet)
    ]

    assert broken(run(*fewer)) == ["web: memory"]


def test_one_file_that_stays_open_does_not_hold() -> None:
    samples = [sample(number, files=20 + (number > 11)) for number in range(1, 13)]

    assert broken(run(*samples)) == ["web: handles"]


@pytest.mark.parametrize(("threads", "holds"), [(102, True), (103, False)])
def test_rays_own_threads_may_vary_by_two_in_a_hundred(threads: int, *, holds: bool) -> None:
    samples = [
        replace(
            sample(number), roles={"Ray": Figures(200.0, 100, 100 if number < 9 else threads, 9)}
        )
        for number in range(1, 13)
    ]

    assert (broken(run(*samples)) == []) is holds


@pytest.mark.parametrize(("largest", "holds"), [(16, True), (17, False)])
def test_grpcs_pools_may_fill_but_have_an_end(largest: int, *, holds: bool) -> None:
    def ray(pooled: int) -> dict[str, Figures]:
        largest_pool = largest if pooled > 3 else 3
        return {
            "Ray": Figures(200, 9, 20 + pooled, 2, pool_threads=pooled, largest_pool=largest_pool)
        }

    samples = [
        replace(sample(number), roles=ray(3 if number < 9 else 3 + largest))
        for number in range(1, 13)
    ]

    assert broken(run(*samples)) == ([] if holds else ["Ray: gRPC's pools"])


def test_role_that_vanishes_does_not_hold() -> None:
    figures = Figures(200.0, 20, 10, 1)
    roles = {"web": figures, "replica": figures}
    samples = [replace(sample(number), roles=roles) for number in range(1, 12)]

    assert broken(run(*samples, sample(12))) == ["replica: there"]


def test_role_that_grew_before_it_vanished_is_told_from_the_samples_that_have_it() -> None:
    sizes = [80, 80, 80, 80, 80, 200, 300, 400, 500, 600, 700]
    samples = [
        replace(
            sample(number),
            roles={**sample(number).roles, "replica": Figures(size, 20, 10, 1)},
        )
        for number, size in enumerate(sizes, 1)
    ]

    assert broken(run(*samples, sample(12))) == ["replica: there", "replica: memory"]


def test_process_that_another_replaced_does_not_hold() -> None:
    first, second = ({"web": Figures(200.0, 20, 10, 1, pids=(pid,))} for pid in (4, 5))
    samples = [
        replace(sample(number), roles=first if number < 9 else second) for number in range(1, 13)
    ]

    assert broken(run(*samples)) == ["web: restarts"]


def test_files_under_traffic_are_no_leak() -> None:
    samples = [sample(number, files=20 + number, is_quiet=number % 2 == 0) for number in range(14)]

    assert (
        broken(
            run(
                *(
                    replace(each, roles=sample(1).roles) if each.is_quiet else each
                    for each in samples
                )
            )
        )
        == []
    )


def test_one_failed_visit_does_not_hold() -> None:
    assert broken(run(failed=1)) == ["failed visits"]


def test_short_run_tells_nothing() -> None:
    with pytest.raises(BenchmarkError, match="2 samples without clients after the warm-up"):
        judge(run(sample(1), sample(2)))


def test_growth_is_told_by_hour_and_by_million_requests_whatever_one_sample_says() -> None:
    samples = [sample(number, memory_mb=200 + number / 60) for number in range(1, 13)]
    samples[5] = sample(6, memory_mb=900)

    assert find_growth(samples, lambda each: each.roles["web"].memory_mb) == pytest.approx(
        (1.0, 1e6 / 5000 / 60)
    )


# What is compared


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (ANSWER, True),
        ({**ANSWER, "probability": 0.75001}, True),
        ({**ANSWER, "probability": 0.76}, False),
        ({**ANSWER, "actions": [1]}, False),
        ({**ANSWER, "actions": [2.0]}, False),
        ({**ANSWER, "actions": [2, 2]}, False),
        ({**ANSWER, "more": 1}, False),
        ({**ANSWER, "probability": None}, False),
        ([ANSWER], False),
    ],
    ids=["same", "digits", "probability", "action", "type", "length", "key", "null", "list"],
)
def test_answers_are_the_same_but_for_last_digits(found: object, *, holds: bool) -> None:
    assert is_same(found, ANSWER) is holds


def test_drawn_observation_keeps_to_its_fields() -> None:
    fields = {
        "id": {"type": "int", "minimum": 0, "maximum": 3},
        "free": {"type": "List[bool]", "min_items": 2, "max_items": 2},
        "speed": {"type": "float", "minimum": -1, "maximum": 1},
    }

    drawn = drawn_observation(fields, random.Random(0))  # noqa: S311 -- a test's

    assert drawn["id"] in range(4)
    assert [type(each) for each in drawn["free"]] == [bool, bool]
    assert -1 <= drawn["speed"] <= 1
    assert flat(drawn) == [drawn["id"], *drawn["free"], drawn["speed"]]


# What is counted


async def visited(
    handle: Callable[[httpx.Request], httpx.Response], scenario: Scenario = ask_one
) -> Traffic:
    """Let a client ask for an observation, of a server that is a function."""
    expected = Expected((CASE,), (), ())
    traffic = Traffic(1, 1, expected, {"asking": (scenario, 1.0)}, clients=1)
    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://soak") as http:
        await traffic.visit("asking", http, random.Random(0))  # noqa: S311 -- a test's
    return traffic


def answered(request: httpx.Request, **changes: object) -> httpx.Response:
    """Answer as the policy does, but for changes."""
    kind = request.url.path.rstrip("/").rpartition("/")[2].removesuffix("_raw")
    return httpx.Response(
        200, json={**CASE.answers[kind], **changes}, headers={"x-request-id": "1"}
    )


async def test_right_answer_is_counted() -> None:
    traffic = await visited(answered)

    assert traffic.counts.by_scenario(["asking"]) == {"asking": ScenarioCounts(1, 0, 0, 0)}


async def test_wrong_answer_is_a_failed_visit_and_told() -> None:
    traffic = await visited(lambda request: answered(request, actions=[0], components=[]))

    assert traffic.counts.failed["asking"] == 1
    assert "wrong answer: expected" in traffic.counts.troubles[0]


@pytest.mark.parametrize("actions", [[7], [-1], [], 0], ids=["7", "-1", "none", "number"])
async def test_draw_that_is_no_action_is_a_failed_visit(actions: object) -> None:
    traffic = await visited(lambda request: answered(request, actions=actions), draw_one)

    assert traffic.counts.by_scenario(["asking"]) == {"asking": ScenarioCounts(0, 0, 0, 1)}


async def test_answer_that_is_no_object_is_a_failed_visit() -> None:
    wrong = httpx.Response(200, json=[1], headers={"x-request-id": "1"})
    traffic = await visited(lambda _request: wrong, draw_one)

    assert traffic.counts.by_scenario(["asking"]) == {"asking": ScenarioCounts(0, 0, 0, 1)}


async def test_wrong_answer_is_not_counted_as_answered() -> None:
    traffic = await visited(lambda request: answered(request, actions=[0], components=[]))

    assert traffic.counts.by_scenario(["asking"]) == {"asking": ScenarioCounts(0, 0, 0, 1)}


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (httpx.Response(503, text="overloaded"), "expected 200, got 503: overloaded"),
        (httpx.Response(200, json=ANSWER), "has no x-request-id"),
        (httpx.Response(200, text="<html>", headers={"x-request-id": "1"}), "JSONDecodeError"),
    ],
    ids=["status", "id", "body"],
)
async def test_answer_of_another_kind_is_a_failed_visit(
    response: httpx.Response, told: str
) -> None:
    traffic = await visited(lambda _request: response)

    assert traffic.counts.failed.total() == 1
    assert told in traffic.counts.troubles[0]


async def test_lost_connection_is_a_failed_visit() -> None:
    def lose(_request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("the server left")

    traffic = await visited(lose)

    assert traffic.counts.troubles == ["asking: RemoteProtocolError: the server left"]


def test_draw_is_one_of_the_right_answers() -> None:
    Visitor.compare(ANSWER, [DISTRIBUTION, ANSWER], "any")
    with pytest.raises(Trouble, match="any: wrong answer"):
        Visitor.compare(ANSWER, [DISTRIBUTION], "any")


# Connections in hand


async def test_connection_in_hand_reads_answers_and_leaves_by_reset() -> None:
    errors: list[type[Exception]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /a HTTP/1.1\r\n")
            assert await reader.readexactly(4) == b"body"
            writer.write(b"HTTP/1.1 201 Created\r\nX-Step: 3\r\nContent-Length: 2\r\n\r\n{}")
            await reader.read()
        except ConnectionResetError as error:
            errors.append(type(error))
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        async with connected(server.sockets[0].getsockname()[1]) as link:
            await link.send_slowly(encode_request("/a", b"body"), pieces=5, pause_s=0)
            outcome = await link.answer()
            link.reset()
        await until(lambda: bool(errors))

    assert (outcome.status, outcome.headers["x-step"], outcome.json()) == (201, "3", {})
    assert errors == [ConnectionResetError]


# What processes hold


def figures_of(code: str, folder: Path) -> ProcessFigures:
    """Return what a process holds once its code has printed that it is ready."""
    log = folder / "log"
    with started([sys.executable, "-c", code], environment={}, folder=folder, log=log) as server:
        wait_until(lambda: "ready" in log.read_text())
        [figures] = server.processes()
    return figures


def test_threads_of_grpcs_pools_are_known_by_their_name(tmp_path: Path) -> None:
    code = (
        "import threading, time, pathlib;"
        "name = lambda: (pathlib.Path(f'/proc/self/task/{threading.get_native_id()}/comm')"
        ".write_text('event_engine'), print('ready', flush=True), time.sleep(60));"
        "threading.Thread(target=name, daemon=True).start(); time.sleep(60)"
    )
    figures = figures_of(code, tmp_path)

    assert (figures.threads, figures.pool_threads) == (2, 1)


def test_processes_tell_their_memory_files_and_threads(tmp_path: Path) -> None:
    code = (
        "import threading, time; block = bytearray(b'x' * 20_000_000); file = open('/dev/null');"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start();"
        "print('ready', flush=True); time.sleep(60)"
    )
    figures = figures_of(code, tmp_path)

    assert (figures.role, figures.threads, figures.files) == ("web", 2, 4)
    assert figures.pool_threads == 0
    assert 20_000_000 < figures.own_bytes < figures.memory_bytes


# What is written


def test_page_and_picture_are_made_again_from_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run().write(tmp_path / "soak-local.json")

    main(["--render-only", "--output", str(tmp_path)])

    page = (tmp_path / "soak-local.md").read_text()
    assert "it holds" in page
    assert "| one observation | 90 | 5 | 5 | 0 |" in page
    assert page in capsys.readouterr().out
    picture = ElementTree.fromstring((tmp_path / "soak-local.svg").read_text())  # noqa: S314 -- ours
    circles = [each for each in picture.iter() if each.tag.endswith("circle")]
    # A dot a sample in each panel: memory, files and threads.
    assert len(circles) == 3 * 12


def test_status_tells_of_a_run_that_does_not_hold(tmp_path: Path) -> None:
    run(failed=2).write(tmp_path / "soak-local.json")

    with pytest.raises(SystemExit, match="the server did not hold"):
        main(["--render-only", "--output", str(tmp_path)])

    assert "**it does not hold**" in (tmp_path / "soak-local.md").read_text()


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run().write(tmp_path / "soak.json")

    assert Record.read(tmp_path / "soak.json") == run()


def test_nothing_to_render_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"soak-local\.json: is not there"):
        main(["--render-only", "--output", str(tmp_path)])


_HOLDS_A_STORE = """
import sys
from pathlib import Path
path = Path(sys.argv[1], "plasmaX")
with path.open("wb") as store:
    store.write(bytes(range(256)) * 1024)
    store.flush()
    path.unlink()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("name", "is_counted"), [("raylet", True), ("worker", False)])
def test_object_store_is_the_raylets_open_file(
    name: str,
    is_counted: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [f"/ray/{name}", "-c", _HOLDS_A_STORE, str(tmp_path)],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        found = stored_bytes(process.pid)
        process.stdin.close()

    assert (found >= 256 * 1024) is is_counted
    assert stored_bytes(process.pid) == 0


def test_picture_of_ray_shows_its_folder_and_object_store() -> None:
    record = replace(
        run(*(replace(sample(number), store_mb=0.7) for number in range(1, 13))), backend="ray"
    )

    assert "object store" in draw(record)
    assert "object store" not in draw(run())
