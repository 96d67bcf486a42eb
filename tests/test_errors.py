"""The error tree: statuses, headers and pickling."""

from __future__ import annotations

import pickle

import pytest

from policy_server import errors
from policy_server.errors import ObservationError, PolicyServerError

STATUSES = {
    "BodyTimeoutError": 408,
    "BodyTooLargeError": 413,
    "DeadlineError": 504,
    "DeploymentChangedError": 409,
    "OtherFilesError": 409,
    "DeploymentError": 409,
    "MissingPackageError": 501,
    "NoStreamError": 405,
    "NotReadyError": 503,
    "ObservationError": 422,
    "OverloadedError": 503,
    "PolicyHangsError": 503,
    "SdkPendingError": 503,
    "SessionConflictError": 409,
    "SessionStoreError": 503,
    "UnauthorizedError": 401,
    "UnknownSessionError": 404,
    "UnreadableSessionError": 409,
    "ForbiddenOriginError": 403,
    "UnsupportedAnswerError": 501,
    "UnsupportedEncodingError": 415,
    "UpgradeRequiredError": 426,
}


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_each_error_has_its_status_and_survives_a_process_boundary(name: str) -> None:
    kind = getattr(errors, name)
    problems = [{"type": "missing", "loc": ["body", "cat"], "msg": "Field required"}]
    error = kind(problems) if kind is ObservationError else kind("models: not found")

    carried = pickle.loads(pickle.dumps(error))  # noqa: S301 -- it was written a moment ago

    assert isinstance(error, PolicyServerError)
    assert error.status == STATUSES.get(name, 500)
    assert type(carried) is kind
    assert carried.message == str(carried) == error.message
    assert dict(carried.headers) == dict(error.headers)


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.UnauthorizedError("wrong"), ("www-authenticate", "Bearer")),
        (errors.OverloadedError("full"), ("retry-after", "1")),
        (errors.NotReadyError("loading"), ("retry-after", "1")),
        (errors.SdkPendingError("generated"), ("retry-after", "5")),
    ],
    ids=["401", "overloaded", "not ready", "pending"],
)
def test_answer_carries_the_header_of_its_status(
    error: PolicyServerError, header: tuple[str, str]
) -> None:
    assert list(error.headers.items()) == [header]


def test_observation_error_names_each_place_in_its_message() -> None:
    error = ObservationError(
        [
            {"type": "missing", "loc": ["body", "cat"], "msg": "Field required"},
            {"type": "float_type", "loc": ["body", "links", 3], "msg": "Input should be a number"},
        ]
    )

    assert error.message == "body.cat: Field required; body.links.3: Input should be a number"
    assert len(pickle.loads(pickle.dumps(error)).problems) == 2  # noqa: S301 -- likewise
