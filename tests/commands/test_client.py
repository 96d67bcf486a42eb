"""Questions to a running server."""

from __future__ import annotations

import http.server
import json
import math
from functools import partial
from pathlib import Path

import pytest

from policy_server.commands import client
from policy_server.commands.client import PolicyClient
from policy_server.errors import ServerAnswerError, SettingsError
from policy_server.settings import Settings
from tests.support.fakes import masked_backend
from tests.support.servers import KEY, Handler, answered_by, live_server


@pytest.mark.parametrize(
    ("observation", "answer"),
    [
        ('{"links": [1, 2.5], "is_open": false}', "predict_deterministic"),
        ("[1, 2.5, 0]", "predict_deterministic"),
        ('{"obs": [1, 2.5, 0]}', "predict_deterministic"),
    ],
    ids=["named", "list", "raw"],
)
def test_asking_takes_named_and_flat_observations(url: str, observation: str, answer: str) -> None:
    with PolicyClient(url, KEY) as server:
        assert json.loads(client.ask(server, observation, answer)) == {
            "actions": [1],
            "probability": 0.8,
            "log_probability": pytest.approx(math.log(0.8)),
        }


@pytest.mark.parametrize(
    "observation",
    [
        '{"x": 1, "y": 2, "action_mask": [1, 0, 0, 1, 0]}',
        '{"obs": [1, 2], "action_mask": [true, false, false, true, false]}',
        "[1, 2, 1, 0, 0, 1, 0]",
    ],
    ids=["named", "raw", "list"],
)
def test_asking_takes_an_action_mask(observation: str) -> None:
    schema = (
        f"observations: {{x: {{type: float}}, y: {{type: float}}}}\nparameters: {{api_key: {KEY}}}"
    )
    with live_server(schema, masked_backend(3, 2)) as url, PolicyClient(url, KEY) as server:
        answer = json.loads(client.ask(server, observation, "predict"))

    assert answer == {"actions": [0, 0], "probability": 1.0, "log_probability": 0.0}


@pytest.mark.parametrize("observation", ['{"obs": [1]}', None], ids=["given", "example"])
def test_a_field_named_obs_is_of_a_named_observation(observation: str | None) -> None:
    schema = (
        "observations: {obs: {type: 'List[int]', one_hot: [3]}}\n"
        f"parameters: {{api_key: {KEY}}}"
    )
    with live_server(schema) as url, PolicyClient(url, KEY) as server:
        text = client.example_observation(server) if observation is None else observation

        assert "actions" in client.ask(server, text, "predict")


def test_field_beside_obs_that_is_no_mask_is_of_a_named_observation(url: str) -> None:
    with PolicyClient(url, KEY) as server, pytest.raises(ServerAnswerError, match="/predict: ref"):
        client.ask(server, '{"obs": [0, 0, 0], "action_mask": [1, 1]}', "predict")


def test_a_seed_makes_the_answer_reproducible(url: str) -> None:
    with PolicyClient(url, KEY) as server:
        answers = [
            [client.ask(server, "[0, 0, 0]", "predict", seed=seed) for seed in range(20)]
            for _ in range(2)
        ]

    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 2


def test_the_example_comes_from_the_server(url: str) -> None:
    with PolicyClient(url, None) as server:
        example = client.example_observation(server)

    assert json.loads(example) == {"links": [0.0, 0.0], "is_open": True}


def test_the_example_of_a_raw_server_is_a_list() -> None:
    with (
        live_server(f"parameters: {{api_key: {KEY}}}") as address,
        PolicyClient(address, KEY) as server,
    ):
        example = client.example_observation(server)
        assert json.loads(example) == [0.0, 0.0, 0.0]
        assert "actions" in client.ask(server, example, "predict")


def test_a_refused_observation_lists_each_field(url: str) -> None:
    with PolicyClient(url, KEY) as server, pytest.raises(ServerAnswerError) as caught:
        client.ask(server, '{"links": [1, NaN], "window": 1}', "predict")

    assert caught.value.message.splitlines() == [
        f"{url}/predict: refused, since",
        "  links.1: Input should be a finite number",
        "  is_open: Field required",
        "  window: Extra inputs are not permitted",
    ]


@pytest.mark.parametrize(
    ("key", "words"), [(None, "no access key"), ("guessed", "wrong access key")]
)
def test_a_refused_key_says_where_it_is_taken_from(url: str, key: str | None, words: str) -> None:
    with (
        PolicyClient(url, key) as server,
        pytest.raises(ServerAnswerError, match=f"{words}.*--key, POLICY_SERVER_API_KEY"),
    ):
        client.ask(server, "[0, 0, 0]", "predict")


class _Odd(Handler):
    def answer(self) -> None:
        status = int(self.path.strip("/").split("/")[0])
        body = b"<html>" if status == 200 else b"{}" if status == 202 else b"[]"
        self.reply(status, body, location="/")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "the answer is no JSON; is it a Policy Server"),
        (202, "gives no example; name an observation"),
        (302, "/openapi.json: answered 302: Found"),
        (500, "/openapi.json: answered 500: Internal Server Error"),
    ],
)
def test_an_odd_answer_is_said(status: int, message: str) -> None:
    with (
        answered_by(_Odd) as address,
        PolicyClient(f"{address}/{status}", None) as server,
        pytest.raises(ServerAnswerError, match=message),
    ):
        client.example_observation(server)


def test_a_server_that_is_not_there_is_said(unused_tcp_port: int) -> None:
    with (
        PolicyClient(f"http://127.0.0.1:{unused_tcp_port}", None) as server,
        pytest.raises(ServerAnswerError, match=r"no server answers there; start one with `uvicorn"),
    ):
        server.get("/schema")


def test_a_server_that_is_silent_is_said() -> None:
    with (
        http.server.HTTPServer(("127.0.0.1", 0), _Odd) as silent,
        PolicyClient(f"http://127.0.0.1:{silent.server_port}", None, timeout_s=0.1) as server,
        pytest.raises(ServerAnswerError, match=r"no answer within 0\.1 s"),
    ):
        server.get("/schema")


def test_a_server_without_tls_is_said(url: str) -> None:
    with (
        PolicyClient(url.replace("http:", "https:"), None) as server,
        pytest.raises(ServerAnswerError, match="no secure connection"),
    ):
        server.get("/schema")


@pytest.mark.parametrize("key", ["schlüssel", " abc", "abc\n", "a\x07"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="the access key: expected printable ASCII"):
        PolicyClient("http://localhost", key)


def test_the_key_is_the_given_the_environments_or_the_schemas(
    settings: Settings, tmp_path: Path
) -> None:
    settings.home.mkdir()
    settings.schema_path.write_text("parameters: {api_key: local}")
    with_key = Settings.model_validate({"home": settings.home, "api_key": "environment"})
    elsewhere = Settings(home=tmp_path)

    assert client.find_api_key("given", with_key) == "given"
    assert client.find_api_key(None, with_key) == "environment"
    assert client.find_api_key(None, settings) == "local"
    assert client.find_api_key(None, elsewhere) is None


def test_an_observation_is_json_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "observation.json"
    file.write_text('{"a": 1.0}')

    assert client.read_observation(' {"a": true}', str) == ' {"a": true}'
    assert client.read_observation(str(file), str) == '{"a": 1.0}'
    assert client.read_observation("-", lambda: "[1e400]") == "[1e400]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1}", r"the observation: expected JSON, got '\{a: 1\}' \(Expecting property name"),
        ("7", "expected JSON, a file, or - for standard input, got '7'"),
        ("-", "standard input: expected a JSON object, or a list .*, got '7'"),
        (".", "'.': expected a readable text file"),
        ("[" * 100_000, "the observation: expected JSON that is nested less deeply"),
        ('{"a\udcff": 1}', "the observation: expected text in UTF-8"),
        ("x" * 300, "got 'xxx.*|'xxx.*: expected a readable text file: .*File name too long"),
    ],
)
def test_an_observation_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        client.read_observation(text, lambda: "7")


def test_standard_input_may_begin_with_a_byte_order_mark() -> None:
    assert client.read_observation("-", lambda: "\ufeff[1, 2]") == "[1, 2]"


def test_standard_input_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(SettingsError, match="standard input: expected text in UTF-8"):
        client.read_observation("-", lambda: b"\xff".decode())


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ((False, False, 3), "predict"),
        ((True, False, None), "predict_deterministic"),
        ((False, True, None), "distribution"),
        ((True, True, None), None),
        ((True, False, 3), None),
        ((False, True, 3), None),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: tuple[bool, bool, int | None], route: str | None
) -> None:
    is_deterministic, is_distribution, seed = options
    choose = partial(
        client.choose_answer,
        is_deterministic=is_deterministic,
        is_distribution=is_distribution,
        seed=seed,
    )

    if route is not None:
        assert choose() == route
    else:
        with pytest.raises(SettingsError):
            choose()


@pytest.mark.parametrize("text", ["", "  "], ids=["empty", "blank"])
def test_no_observation_at_all_is_no_file(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        client.read_observation(text, str)

    assert caught.value.message == (
        "the observation: expected JSON, a file, or - for standard input, got ''"
    )
