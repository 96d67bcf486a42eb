"""Streams of real servers, and the example clients in Python and Java as their users run them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from examples.stream.policy_stream import PolicyError, PolicyStream
from tests.support.fakes import summing_backend
from tests.support.folders import EXPORTS, ROOT
from tests.support.processes import Child, child, descendants, program, run
from tests.support.server_processes import KEY, Server, compiled_home_of, running_server
from tests.support.servers import Handler, answered_by, free_port, served_app
from tests.support.waiting import wait_until
from tests.support.web import OBSERVATION, build

pytestmark = pytest.mark.service

LOCAL = {"POLICY_SERVER_BACKEND": "local"}
CLIENTS = ROOT / "examples" / "stream"
CASES = json.loads((EXPORTS / "ppo_discrete" / "cases.json").read_text())
OBSERVATIONS = [case["observation"] for case in CASES]
WRONG: dict[str, Any] = {}
# A Java program that is not the client's own.
LOOP = """
import java.net.URI;
import java.util.List;
import java.util.Map;

public class Loop {
    public static void main(String[] arguments) throws Exception {
        try (var policy = new PolicyStream(URI.create(arguments[0]), arguments[1])) {
            Map<String, Object> observation = Map.of(%s);
            System.out.println(policy.predict(observation));
            try {
                policy.predict(Map.of("quote \\" and \\u00fc", List.of(true, -0.5)));
            } catch (PolicyStream.PolicyException error) {
                System.out.println(error.status + " " + error.answer);
            }
            try {
                policy.answer(List.of("{}", "{}").iterator(), 2, text -> {
                    throw new IllegalStateException("left");
                });
            } catch (IllegalStateException left) {
                System.out.println(left.getMessage());
            }
            System.out.println(policy.predict(observation));
        }
    }
}
"""


@pytest.fixture(scope="module", params=["local", "two workers over ray"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = compiled_home_of("ppo_discrete", tmp_path_factory.mktemp("home"))
    starting = (
        running_server(home, environment=LOCAL)
        if request.param == "local"
        else running_server(home, "--workers", "2")
    )
    with starting as started:
        yield started


def address(server: Server, path: str = "/predict_deterministic/stream") -> str:
    return server.url.replace("http", "ws") + path


def opened(server: Server, path: str) -> ClientConnection:
    return connect(
        address(server, path),
        additional_headers={"access-token": KEY},
        compression=None,
        legacy=True,
    )


def posted(server: Server) -> list[Any]:
    with server.client() as client:
        return [
            client.post("/predict_deterministic", json=observation).json()
            for observation in OBSERVATIONS
        ]


def like(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what equals an answer: a batch's last digit depends on its size."""
    return answer | {
        key: pytest.approx(answer[key], abs=1e-6) for key in ("probability", "log_probability")
    }


def test_a_thousand_frames_in_flight_are_answered_in_order(server: Server) -> None:
    expected = posted(server)
    frames = [
        "{" if index % 50 == 49 else json.dumps(OBSERVATIONS[index % len(OBSERVATIONS)])
        for index in range(1000)
    ]
    with opened(server, "/predict_deterministic/stream") as stream:
        with ThreadPoolExecutor(1) as executor:
            sending = executor.submit(_send_all, stream, frames)
            answers = [json.loads(stream.recv(timeout=60)) for _ in frames]
        sending.result()

    for index, answer in enumerate(answers):
        if index % 50 == 49:
            assert answer["status"] == 422
        else:
            assert answer == like(expected[index % len(expected)])


def _send_all(stream: ClientConnection, frames: list[str]) -> None:
    for frame in frames:
        stream.send(frame)


def test_wrong_key_refuses_the_handshake(server: Server) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(address(server), additional_headers={"access-token": "x"}, legacy=True)

    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body) == {"detail": "wrong access key"}


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["JSON", "MessagePack"])
def test_python_client_gives_the_actions_of_the_post_route(
    server: Server,
    is_msgpack: bool,  # noqa: FBT001 -- pytest gives it
) -> None:
    expected = posted(server)

    with PolicyStream(address(server), KEY, is_msgpack=is_msgpack) as policy:
        actions = [policy.predict(observation) for observation in OBSERVATIONS]
        with pytest.raises(PolicyError) as refused:
            policy.predict(WRONG)
        pipelined = list(policy.answers(OBSERVATIONS, in_flight=8))

    assert actions == [answer["actions"] for answer in expected]
    assert pipelined == [like(answer) for answer in expected]
    assert refused.value.status == 422
    assert refused.value.detail[0]["type"] == "missing"


def test_python_client_raises_what_refuses_its_handshake(server: Server) -> None:
    with PolicyStream(address(server), "x") as policy, pytest.raises(PolicyError) as refused:
        policy.predict(OBSERVATIONS[0])

    assert (refused.value.status, refused.value.detail) == (401, "wrong access key")


def test_python_client_reads_no_answers_of_a_loop_that_was_left(server: Server) -> None:
    expected = posted(server)

    with PolicyStream(address(server), KEY) as policy:
        answers = policy.answers(OBSERVATIONS, in_flight=8)
        next(answers)
        answers.close()  # type: ignore[attr-defined]  # a generator
        last = policy.predict(OBSERVATIONS[-1])

    assert last == expected[-1]["actions"]


@pytest.fixture(scope="module")
def java_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = program("javac", package="default-jdk")
    folder = tmp_path_factory.mktemp("classes")
    items = ", ".join(f'"{name}", {json.dumps(value)}' for name, value in OBSERVATIONS[0].items())
    (folder / "Loop.java").write_text(LOOP % items)
    sources = [*CLIENTS.glob("*.java"), folder / "Loop.java"]
    run(compiler, "-Xlint:all", "-Werror", "-d", folder, *sources)
    return folder


def example(language: str, java_classes: Path) -> list[str | Path]:
    if language == "java":
        return ["java", "-cp", java_classes, "PolicyStream"]
    return [sys.executable, CLIENTS / "policy_stream.py"]


@pytest.mark.parametrize("in_flight", ["1", "8"])
@pytest.mark.parametrize("language", ["python", "java"])
def test_program_answers_the_lines_of_standard_input(
    server: Server, java_classes: Path, language: str, in_flight: str
) -> None:
    lines = [*OBSERVATIONS, WRONG, *OBSERVATIONS]
    options = ["--url", address(server), "--in-flight", in_flight]

    done = run(
        *example(language, java_classes),
        *options,
        typed="\n".join(map(json.dumps, lines)),
        environment={**os.environ, "POLICY_SERVER_API_KEY": KEY},
        status=1,
    )

    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = posted(server)
    alike = [like(answer) for answer in expected]
    assert answers[: len(expected)] == alike
    assert answers[len(expected) + 1 :] == alike
    assert answers[len(expected)]["status"] == 422


@pytest.mark.parametrize("language", ["python", "java"])
def test_program_shows_its_options(java_classes: Path, language: str) -> None:
    done = run(*example(language, java_classes), "--help")

    assert all(option in done.stdout for option in ("--url", "--key", "--in-flight"))


def test_java_client_gives_actions_and_typed_errors(server: Server, java_classes: Path) -> None:
    done = run("java", "-cp", java_classes, "Loop", address(server), KEY)

    first, error, left, last = done.stdout.splitlines()
    assert json.loads(first) == json.loads(last) == posted(server)[0]["actions"]
    # What was asked before is not taken for the answer of what is asked now.
    assert left == "left"
    assert error.startswith("422 ")
    assert 'quote \\" and' in error


@pytest.mark.parametrize("language", ["python", "java"])
def test_client_outlives_a_restart_of_the_server(
    tmp_path: Path, java_classes: Path, language: str
) -> None:
    home, port = compiled_home_of("ppo_discrete", tmp_path), free_port()
    with ExitStack() as stack:
        with running_server(home, environment=LOCAL, port=port) as server:
            command = [*example(language, java_classes), "--url", address(server), "--key", KEY]
            client = stack.enter_context(child(*command))
            before = _answer_of(client)
        with running_server(home, environment=LOCAL, port=port):
            after = _answer_of(client)
        status, _, _ = client.finish()

    assert status == 0
    assert before == after
    assert "actions" in before


@pytest.mark.parametrize("language", ["python", "java"])
def test_client_does_not_go_on_with_an_episode_whose_memory_is_gone(
    java_classes: Path, language: str
) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}/predict_deterministic/stream"
    with ExitStack() as stack:
        with served_app(build(summing_backend()), port=port):
            command = [*example(language, java_classes), "--url", url, "--key", KEY]
            client = stack.enter_context(child(*command))
            first = [_answer_of(client, OBSERVATION | {"cat": 1}) for _ in range(2)]
            reset = _answer_of(client, {"reset": True})
        with served_app(build(summing_backend()), port=port):
            # An episode of which nothing was answered has lost nothing.
            begun = _answer_of(client, OBSERVATION | {"cat": 1})
        with served_app(build(summing_backend()), port=port):
            client.tell(json.dumps(OBSERVATION))
            status, printed, told = client.finish()

    assert [answer["actions"] for answer in [*first, begun]] == [[1], [2], [1]]
    assert reset == {"reset": True}
    assert (status, printed) == (2, "")
    assert "409: the connection broke in the middle of an episode" in told


@pytest.mark.parametrize("language", ["python", "java"])
def test_client_takes_a_proxys_page_for_what_it_is(java_classes: Path, language: str) -> None:
    statuses = iter([502, 504, 403])

    class Proxy(Handler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.reply(next(statuses), b"<html>none of ours</html>", connection="close")

    with answered_by(Proxy) as url:
        command = [
            *example(language, java_classes),
            "--url",
            url.replace("http", "ws") + "/predict",
        ]
        done = run(*command, typed=json.dumps(OBSERVATION), status=2)

    assert done.stderr.startswith("403: ")
    assert next(statuses, None) is None


def test_python_client_begins_episodes() -> None:
    observation = OBSERVATION | {"cat": 1}
    with served_app(build(summing_backend())) as port:
        url = f"ws://127.0.0.1:{port}/predict_deterministic/stream"
        with PolicyStream(url, KEY) as policy:
            first = [policy.predict(observation) for _ in range(2)]
            policy.reset()
            second = [policy.predict(observation) for _ in range(2)]

    assert first == second == [[1], [2]]


def test_python_client_speaks_to_a_unix_socket(tmp_path: Path) -> None:
    uds = tmp_path / "policy.sock"
    url = "ws://localhost/predict_deterministic/stream"
    with (
        served_app(build(summing_backend()), uds=uds),
        PolicyStream(url, KEY, uds=str(uds)) as policy,
    ):
        actions = [policy.predict(OBSERVATION | {"cat": 1}) for _ in range(2)]
        # A client that has to connect again in an episode asks whether it has a memory.
        policy.close()
        with pytest.raises(PolicyError, match="memory"):
            policy.predict(OBSERVATION)

    assert actions == [[1], [2]]


def test_java_client_speaks_to_a_unix_socket(tmp_path: Path, java_classes: Path) -> None:
    uds = tmp_path / "policy.sock"
    url = "ws://localhost/predict_deterministic/stream"
    command = [*example("java", java_classes), "--url", url, "--key", KEY, "--uds", uds]
    with ExitStack() as stack:
        with served_app(build(summing_backend()), uds=uds):
            refused = run(
                *command[:-3], "wrong", "--uds", uds, typed=json.dumps(OBSERVATION), status=2
            )
            client = stack.enter_context(child(*command))
            actions = [_answer_of(client, OBSERVATION | {"cat": 1})["actions"] for _ in range(2)]
            large = _answer_of(client, {"cat": "x" * 70_000})
        uds.unlink()
        with served_app(build(summing_backend()), uds=uds):
            # A client that has to connect again in an episode asks whether it has a memory.
            client.tell(json.dumps(OBSERVATION))
            status, _, said = client.finish()

    assert refused.stderr.startswith("401: ")
    assert actions == [[1], [2]]
    assert large["status"] == 422
    assert status == 2
    assert said.startswith("409: the connection broke in the middle of an episode")


def _answer_of(client: Child, observation: object = OBSERVATIONS[0]) -> Any:  # noqa: ANN401 -- JSON
    client.tell(json.dumps(observation))
    return json.loads(client.read_line())


def test_replica_that_dies_causes_no_error_frame(server: Server) -> None:
    replicas = [pid for pid in descendants(server.process.pid) if _is_replica(pid)]
    if not replicas:
        pytest.skip("without Ray there is no replica")
    frame = json.dumps(OBSERVATIONS[0])
    with opened(server, "/predict/stream") as stream:
        for index in range(200):
            stream.send(frame)
            if index == 100:
                os.kill(replicas[0], signal.SIGKILL)
        answers = [json.loads(stream.recv(timeout=60)) for _ in range(200)]

    assert ["actions" in answer for answer in answers] == [True] * 200


def _is_replica(pid: int) -> bool:
    try:
        return "ServeReplica" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_sigterm_answers_what_is_in_flight_and_closes_with_1012(tmp_path: Path) -> None:
    frame = json.dumps(OBSERVATIONS[0])
    with running_server(compiled_home_of("ppo_discrete", tmp_path)) as server:
        with opened(server, "/predict/stream") as stream:
            stream.send(frame)
            stream.recv()
            asked = server.figure("policy_server_batch_size_sum")
            assert asked is not None
            for _ in range(200):
                stream.send(frame)
            wait_until(lambda: server.figure("policy_server_batch_size_sum") == asked + 200)
            server.process.send_signal(signal.SIGTERM)
            answers = [json.loads(stream.recv(timeout=60)) for _ in range(200)]
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv(timeout=60)

        assert ["actions" in answer for answer in answers] == [True] * 200
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.output()
