"""One served policy: the shape of each answer, seeds, and what happens as it starts and ends."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from policy_server.errors import PolicyFailedError
from policy_server.policy import ActionOutput
from policy_server.serving import OpenedPolicy
from tests.support.action_shapes import (
    SHAPES,
    TUPLE,
    TUPLE_BIAS,
    VECTOR,
    backend_of,
)
from tests.support.fakes import (
    FakeBackend,
    components_of,
    integer_backend,
    renamed,
    signature_of,
)
from tests.support.waiting import turns, until
from tests.support.web import (
    OBSERVATION,
    SCHEMA,
    EndFailedError,
    StartFailedError,
    assert_error,
    build,
    client_of,
    running,
    serve,
    serve_shared,
)

TINY = 5e-4
HUNDREDS = components_of(*((("categorical", 100),) * 200))


def chances_of(*logits: float) -> list[float]:
    """Return the softmax."""
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


async def answer_of(client: httpx.AsyncClient, path: str, **options: Any) -> Any:  # noqa: ANN401 -- JSON
    """Ask with the usual observation."""
    body = {"obs": [0, 1.5]} if path.endswith("_raw") else OBSERVATION
    response = await client.post(path, json=body, **options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


@pytest.mark.parametrize("suffix", ["", "_raw"], ids=["named", "raw"])
async def test_integer_action_is_a_list_of_one_with_its_probability(suffix: str) -> None:
    async with serve_shared() as client:
        mode = await answer_of(client, f"/predict_deterministic{suffix}")
        drawn = await answer_of(client, f"/predict{suffix}")
        stated = await answer_of(client, f"/distribution{suffix}")

    chances = chances_of(0, 1, 2)
    assert mode == {
        "actions": [2],
        "probability": pytest.approx(chances[2]),
        "log_probability": pytest.approx(math.log(chances[2])),
    }
    (action,) = drawn["actions"]
    assert type(action) is int
    assert drawn["probability"] == pytest.approx(chances[action])
    assert drawn["log_probability"] == pytest.approx(math.log(chances[action]))
    assert stated == {
        "components": [{"kind": "categorical", "probabilities": pytest.approx(chances)}]
    }


async def test_probability_has_float32_precision_without_more_digits() -> None:
    async with serve_shared() as client:
        response = await client.post("/predict_deterministic", json=OBSERVATION)

    assert np.float32(0.66524094) == np.float32(chances_of(0, 1, 2)[2])
    assert '"probability":0.66524094,"log_probability":-0.40760598}' in response.text


@pytest.mark.parametrize(("backend", "actions"), SHAPES.values(), ids=SHAPES)
async def test_action_has_the_shape_of_the_policy(backend: FakeBackend, actions: list[Any]) -> None:
    async with serve(backend, schema="parameters: {}") as client:
        answer = await answer_of(client, "/predict_deterministic_raw")
        drawn = await answer_of(client, "/predict_raw")

    for found, expected in zip(answer["actions"], actions, strict=True):
        assert found == pytest.approx(expected, abs=TINY)
        assert type(found) is type(expected) or type(expected) is not list
        assert isinstance(found, int) or not isinstance(expected, int) or expected in (0, 1)
    assert [type(value) for value in drawn["actions"]] == [
        type(value) for value in answer["actions"]
    ]
    assert answer["probability"] > 0


async def test_distribution_states_every_component_in_order() -> None:
    async with serve(backend_of(TUPLE, TUPLE_BIAS), schema="parameters: {}") as client:
        answer = await answer_of(client, "/distribution_raw")

    assert answer == {
        "components": [
            {"kind": "categorical", "probabilities": pytest.approx(chances_of(1, 0))},
            {"kind": "normal", "mean": pytest.approx([0.2, -0.3]), "std": [1.0, 1.0]},
            {"kind": "categorical", "probabilities": pytest.approx(chances_of(0, 0, 5))},
        ]
    }


@pytest.mark.parametrize(
    ("backend", "component"),
    [
        (
            SHAPES["squashed"][0],
            {"kind": "squashed_normal", "mean": [0.0, 9.0], "std": [1.0, 1.0]},
        ),
        (SHAPES["deterministic"][0], {"kind": "deterministic", "value": [0.5, 0.25]}),
    ],
    ids=["squashed", "deterministic"],
)
async def test_distribution_of_other_families_has_their_own_numbers(
    backend: FakeBackend, component: dict[str, Any]
) -> None:
    async with serve(backend, schema="parameters: {}") as client:
        assert await answer_of(client, "/distribution_raw") == {"components": [component]}


async def test_names_and_labels_stand_beside_the_probabilities() -> None:
    backend = integer_backend()
    (part,) = backend.signature.components or ()
    named = renamed(backend, (replace(part, name="move", labels=("up", "down", "stay")),))

    async with serve(named) as client:
        (component,) = (await answer_of(client, "/distribution"))["components"]

    assert (component["name"], component["labels"]) == ("move", ["up", "down", "stay"])


async def test_bounds_give_answers_in_the_environments_units() -> None:
    (part,) = components_of(("normal", 2))
    part = replace(part, name="force", low=(0.0, -4.0), high=(10.0, 4.0))
    backend = backend_of((part,), (0.5, -2.0, 0, 0), VECTOR)

    async with serve(backend, schema="parameters: {}") as client:
        mode = await answer_of(client, "/predict_deterministic_raw")
        (component,) = (await answer_of(client, "/distribution_raw"))["components"]

    assert mode["actions"] == [7.5, -4.0]
    mass = 0.5 * math.erfc(-1 / math.sqrt(2))
    assert mode["at_bound"] == [1]
    assert mode["probability"] == pytest.approx(mass / math.sqrt(2 * math.pi) / 5)
    assert (component["mean"], component["std"]) == ([7.5, -8.0], [5.0, 4.0])
    assert component["mass_at_low"][1] == pytest.approx(mass)
    assert component["mass_at_high"][1] == pytest.approx(0.5 * math.erfc(3 / math.sqrt(2)))


async def test_numbers_at_a_bound_are_counted_through_nested_lists() -> None:
    choice, box = components_of(("categorical", 2), ("normal", 2))
    box = replace(box, low=(-1.0, -1.0), high=(1.0, 1.0))
    backend = backend_of((choice, box), (1, 0, 0.5, 9.0, 0, -9.0))

    async with serve(backend, schema="parameters: {}") as client:
        answer = await answer_of(client, "/predict_deterministic_raw")
        free = await answer_of(client, "/predict_raw", params={"seed": 1})
        document = (await client.get("/openapi.json")).json()

    assert answer["actions"] == [0, [0.5, 1.0]]
    assert list(answer) == ["actions", "probability", "log_probability", "at_bound"]
    assert (answer["at_bound"], 2 in free["at_bound"]) == ([2], True)
    schemas = document["components"]["schemas"]
    assert "at_bound" in schemas["Prediction"]["required"]
    assert schemas["PredictionBatch"]["properties"]["at_bound"]["items"]["items"]["type"] == (
        "integer"
    )


async def test_answers_of_other_policies_say_nothing_of_bounds() -> None:
    async with serve(SHAPES["squashed"][0], schema="parameters: {}") as client:
        answer = await answer_of(client, "/predict_raw")
        document = (await client.get("/openapi.json")).json()

    assert list(answer) == ["actions", "probability", "log_probability"]
    assert list(document["components"]["schemas"]["Prediction"]["properties"]) == list(answer)


async def test_probability_that_the_model_does_not_give_is_null() -> None:
    output = ActionOutput("actions_0", is_integer=False, columns=1, is_vector=True)
    backend = FakeBackend(signature_of(None, outputs=(output,)), (), actions=([0.25], float("nan")))

    async with serve(backend) as client:
        assert await answer_of(client, "/predict") == {
            "actions": [0.25],
            "probability": None,
            "log_probability": None,
        }


async def test_density_of_the_graph_beyond_float32_is_cut() -> None:
    output = ActionOutput("actions_0", is_integer=False, columns=1, is_vector=True)
    backend = FakeBackend(signature_of(None, outputs=(output,)), (), actions=([0.25], math.inf))

    async with serve(backend) as client:
        answer = await answer_of(client, "/predict")

    assert np.float32(answer["probability"]) == np.finfo(np.float32).max
    assert np.float32(answer["log_probability"]) == np.finfo(np.float32).max


async def test_probability_that_underflows_is_told_by_its_logarithm() -> None:
    backend = backend_of(HUNDREDS, (0.0,) * 20_000)
    async with serve(backend, schema="parameters: {}") as client:
        answer = await answer_of(client, "/predict_raw")
        batch = await client.post("/predict_raw/batch", json=[{"obs": [0, 1.5]}])

    assert answer["probability"] == 0.0
    assert answer["log_probability"] == pytest.approx(-200 * math.log(100))
    assert batch.json()["log_probability"] == [pytest.approx(answer["log_probability"])]


async def test_seed_makes_a_draw_reproducible_alone_and_in_company() -> None:
    backend = integer_backend((0.0,) * 50)
    async with serve(backend) as client:
        alone = [
            (await answer_of(client, "/predict", params={"seed": seed}))["actions"]
            for seed in range(10)
        ]
        together = await asyncio.gather(
            *(answer_of(client, "/predict", params={"seed": seed}) for seed in range(10)),
            *(answer_of(client, "/predict") for _ in range(10)),
        )

    assert [answer["actions"] for answer in together[:10]] == alone
    assert len({tuple(actions) for actions in alone}) > 3
    assert max(backend.batches) > 1


async def test_largest_seed_is_taken() -> None:
    async with serve_shared() as client:
        await answer_of(client, "/predict", params={"seed": 2**63 - 1})


async def test_draws_are_independent_and_follow_the_distribution() -> None:
    async with serve_shared() as client:
        answers = await asyncio.gather(
            *(answer_of(client, "/predict", params={"seed": seed}) for seed in range(600))
        )

    found = Counter(answer["actions"][0] for answer in answers)
    expected = [chance * 600 for chance in chances_of(0, 1, 2)]
    # The 1e-6 quantile of chi-square with two degrees of freedom.
    assert sum((found[i] - value) ** 2 / value for i, value in enumerate(expected)) < 27.6


async def test_schema_without_observations_has_raw_routes_only() -> None:
    async with serve_shared(schema="parameters: {}") as client:
        assert_error(await client.post("/predict", json=OBSERVATION), 404)
        await answer_of(client, "/predict_raw")


async def test_start_warms_every_answer_up() -> None:
    backend = integer_backend()
    async with serve(backend):
        assert backend.batches == [1, 1, 1]


async def test_example_that_the_policy_refuses_does_not_stop_the_start() -> None:
    # An observation of zeros masks every action.
    backend = integer_backend((-math.inf, -math.inf))
    async with serve(backend) as client:
        document = (await client.get("/openapi.json")).json()

    responses = document["paths"]["/predict"]["post"]["responses"]
    assert "example" not in responses["200"]["content"]["application/json"]


async def test_policy_that_fails_its_warm_up_ends_the_start_in_one_line() -> None:
    backend = integer_backend()
    backend.error, backend.poison = PolicyFailedError("the policy failed"), 0.0

    with pytest.raises(StartFailedError, match=r"^the policy failed$"):
        async with running(build(backend)):
            pass


async def _fail(error: Exception) -> OpenedPolicy:
    raise error


@asynccontextmanager
async def failing_at_the_start(error: Exception) -> AsyncIterator[OpenedPolicy]:
    """Open no backend."""
    yield await _fail(error)


@asynccontextmanager
async def failing_at_the_end(error: Exception) -> AsyncIterator[OpenedPolicy]:
    """Open a backend that can't be closed."""
    yield OpenedPolicy(integer_backend())
    await _fail(error)


async def test_backend_that_cant_start_ends_the_start_in_one_line() -> None:
    error = PolicyFailedError("saved_model.pb: holds no policy")

    with pytest.raises(StartFailedError, match=r"^saved_model\.pb: holds no policy$"):
        async with running(build(open_policy=lambda: failing_at_the_start(error))):
            pass


async def test_foreign_failure_at_the_start_keeps_its_traceback() -> None:
    error = RuntimeError("out of ports")

    with pytest.raises(StartFailedError, match=r"(?s)Traceback.*out of ports"):
        async with running(build(open_policy=lambda: failing_at_the_start(error))):
            pass


async def test_failure_at_the_end_is_one_line() -> None:
    error = PolicyFailedError("a replica did not end")

    with pytest.raises(EndFailedError, match=r"^a replica did not end$"):
        async with running(build(open_policy=lambda: failing_at_the_end(error))):
            pass


async def test_foreign_failure_at_the_end_is_raised() -> None:
    error = ValueError("a replica did not end")

    with pytest.raises(ValueError, match="a replica did not end"):
        async with running(build(open_policy=lambda: failing_at_the_end(error))):
            pass


async def test_end_answers_what_is_in_flight_and_refuses_what_comes() -> None:
    backend = integer_backend()
    app = build(backend)
    async with client_of(app) as client:
        async with running(app):
            backend.gate = asyncio.Event()
            backend.batches.clear()
            asking = asyncio.create_task(client.post("/predict", json=OBSERVATION))
            await until(lambda: backend.batches == [1])
            backend_gate = backend.gate

            async def finish() -> list[httpx.Response]:
                await turns()
                during = [
                    await client.get("/readyz"),
                    await client.post("/predict", json=OBSERVATION),
                ]
                backend_gate.set()
                return during

            finishing = asyncio.create_task(finish())
        answered, refused = await asking, await finishing
        after = await client.get("/readyz")

    assert answered.status_code == 200
    assert [response.status_code for response in refused] == [503, 503]
    assert after.status_code == 503


@pytest.mark.parametrize(("is_up", "status"), [(True, 200), (False, 503)])
async def test_readiness_is_the_backends(*, is_up: bool, status: int) -> None:
    backend = integer_backend()
    async with serve(backend) as client:
        backend.is_up = is_up
        ready, alive = await client.get("/readyz"), await client.get("/livez")

    assert (ready.status_code, alive.status_code) == (status, 200)


class LosableFake(FakeBackend):
    """A backend in this process whose threads may all hang."""

    has_lost_all = False

    def is_lost(self) -> bool:
        """Return whether nothing but another process would answer."""
        return self.has_lost_all


@pytest.mark.parametrize(("has_lost_all", "status"), [(False, 200), (True, 503)])
async def test_process_whose_policy_is_lost_for_good_is_not_alive(
    *, has_lost_all: bool, status: int
) -> None:
    backend = LosableFake(integer_backend().signature, (0.0, 0.0))
    async with serve(backend) as client:
        backend.is_up, backend.has_lost_all = False, has_lost_all
        alive, root = await client.get("/livez"), await client.get("/")

    assert (alive.status_code, root.status_code) == (status, 200)
    if has_lost_all:
        assert_error(alive, 503, "each thread of the policy 'default' hangs")


async def test_app_runs_twice(caplog: pytest.LogCaptureFixture) -> None:
    app = build()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            async with running(app), client_of(app) as client:
                await answer_of(client, "/predict")

    assert caplog.records == []


async def test_two_policies_live_in_one_process() -> None:
    first, second = integer_backend((9.0, 0.0)), integer_backend((0.0, 9.0))
    async with serve(first) as one, serve(second, schema=SCHEMA) as two:
        answers = [await answer_of(client, "/predict_deterministic") for client in (one, two)]

    assert [answer["actions"] for answer in answers] == [[0], [1]]
