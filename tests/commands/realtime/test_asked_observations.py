"""The observations of a loop are those that the server takes."""

from __future__ import annotations

import pytest

from policy_server.commands.client import PolicyClient
from policy_server.commands.realtime.asked_observations import AskedObservations, observations_of
from policy_server.errors import SettingsError
from policy_server.observations import ObservationSpace
from policy_server.schema import parse_schema, public_schema
from tests.support.servers import KEY

FIELDS = """
observations:
  count: {type: int, minimum: 3, maximum: 5}
  high: {type: int, minimum: 40}
  low: {type: float, maximum: -7.5}
  is_open: {type: bool}
  speeds: {type: "List[float]", min_items: 2, max_items: 3, minimum: 0}
  open: {type: "List[int]"}
  image: {type: "List[int]", shape: [2, 3], minimum: 0, maximum: 255}
  place: {type: int, one_hot: 4, minimum: 1}
  places: {type: "List[int]", one_hot: [2, 3]}
parameters: {api_key: secret}
"""


def asked(url: str, observation: str | None) -> AskedObservations:
    """Return the observations for the default policy of a server."""
    with PolicyClient(url, KEY) as client:
        return observations_of(
            client, client.schema(), observation, read_standard_input=lambda: "[1]"
        )


def test_random_observations_are_in_the_range_of_the_schema() -> None:
    schema = parse_schema(FIELDS)
    client = PolicyClient("http://127.0.0.1:1", None)

    found = observations_of(client, public_schema(schema), "random", read_standard_input=str)

    rows = [ObservationSpace(schema.observations).parse_named(body) for body in found.bodies]
    assert len({tuple(row) for row in rows}) > 200
    assert not found.is_raw


def test_random_flat_observations_have_the_policys_width() -> None:
    document = {"policy": {"observation_width": 5}, "parameters": {}}
    client = PolicyClient("http://127.0.0.1:1", None)

    found = observations_of(client, document, "random", read_standard_input=str)

    assert found.is_raw
    rows = [ObservationSpace(None).parse_raw(body) for body in found.bodies]
    assert {len(row) for row in rows} == {5}


@pytest.mark.parametrize(
    ("observation", "body", "is_raw"),
    [
        (
            '{"links": [1, 2.50], "is_open": false}',
            b'{"links": [1, 2.50], "is_open": false}',
            False,
        ),
        ("[1, 2.50, 0]", b'{"obs": [1, 2.50, 0]}', True),
        ('{"obs": [1, 2, 0]}', b'{"obs": [1, 2, 0]}', True),
        ("-", b'{"obs": [1]}', True),
    ],
    ids=["named", "list", "raw", "standard input"],
)
def test_given_observation_goes_out_as_it_was_written(
    url: str, observation: str, body: bytes, *, is_raw: bool
) -> None:
    found = asked(url, observation)

    assert found.bodies == [body]
    assert found.is_raw is is_raw


def test_server_gives_its_own_example(url: str) -> None:
    assert asked(url, None).bodies == [b'{"links": [0.0, 0.0], "is_open": true}']


def test_observation_that_is_no_json_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="expected JSON"):
        asked(url, "{wrong")
