"""A replica: the policy, or the reason why there is none."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from pathlib import Path

import numpy as np
import pytest

from policy_server.backends.ray.ledger import FilesHere
from policy_server.backends.ray.replicas import PolicyReplica
from policy_server.engine.cache import Outcome, encode
from policy_server.errors import ModelError, PolicyServerError
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema
from tests.support.compiled import COMPILED

DIGEST = "digest"


def replica_of(folder: Path, compiled: bytes) -> PolicyReplica:
    """Start a replica over the file of a compiled policy."""
    (folder / PolicyReplica.COMPILED_FILE).write_bytes(compiled)
    return PolicyReplica(FilesHere(folder), ServerSchema(), DIGEST)


def test_replica_describes_and_answers_for_the_compiled_policy(tmp_path: Path) -> None:
    replica = replica_of(tmp_path, encode(Outcome(COMPILED), DIGEST))

    signature = asyncio.run(replica.describe())
    answer = asyncio.run(replica.answer(PolicyInputs.of(np.zeros((3, 2), np.float32))))

    assert isinstance(signature, PolicySignature)
    assert signature == COMPILED.signature
    assert isinstance(answer, PolicyOutputs)
    assert len(answer) == 3


@pytest.mark.parametrize("method", ["describe", "answer"])
def test_reason_why_a_policy_is_not_loaded_reaches_the_process_that_asks(
    method: str, tmp_path: Path
) -> None:
    replica = replica_of(tmp_path, b"no archive")
    inputs = [] if method == "describe" else [PolicyInputs.of(np.zeros((1, 2), np.float32))]

    answers = [asyncio.run(getattr(replica, method)(*inputs)) for _ in range(3)]

    error = pickle.loads(pickle.dumps(answers[-1]))  # noqa: S301 -- as it crosses to that process
    # Not the error of a policy that fails, whose message any client gets.
    assert isinstance(error, ModelError)
    assert error.message.startswith("the policy can't be loaded: ValueError: ")
    # With the replica's own traceback, once.
    told = "".join(traceback.format_exception(error))
    assert told.count("In the replica:") == told.count("Traceback (most recent call last)") == 1


def test_policy_that_was_compiled_from_another_schema_is_refused(tmp_path: Path) -> None:
    replica = replica_of(tmp_path, encode(Outcome(COMPILED), "another"))

    error = asyncio.run(replica.describe())

    assert isinstance(error, PolicyServerError)
    assert "belongs to another policy" in error.message
