"""The two encodings of a stream's frames: text is JSON, binary is MessagePack."""

from __future__ import annotations

from typing import Any, Literal

import msgpack
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Message

from policy_server.errors import BodyTooLargeError, ObservationError
from policy_server.observations import ObservationSpace, check_agents, parse_agents, problem
from policy_server.serving import NOTHING_STATED, StatedStep
from policy_server.web.json_bodies import BodySeed

__all__ = [
    "FRAME_WORDS",
    "OBSERVATION",
    "Reset",
    "answer_payload",
    "error_answer",
    "parse_frame",
    "parse_team_frame",
    "read_reset",
    "reset_in",
    "split_frame",
    "split_values",
    "value_of",
    "written_again",
]

_RESET, _SEED = "reset", "seed"
OBSERVATION, _REWARD, _ACTION = "observation", "previous_reward", "previous_action"
FRAME_WORDS = frozenset({OBSERVATION, _REWARD, _ACTION})


class Reset(BaseModel):
    """A frame that begins another episode: `{"reset": true}`, or `{"reset": true, "seed": 7}`.

    Attributes:
        seed: draws the first frame of the episode; None where the frame has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reset: Literal[True]
    seed: BodySeed | None = None

    @property
    def answer(self) -> bytes:
        """Return the answer to the frame, which says the same."""
        return self.model_dump_json(exclude_none=True).encode()


def parse_frame(
    message: Message, space: ObservationSpace, *, is_raw: bool, max_bytes: int
) -> list[float]:
    """Turn a frame into a row.

    Args:
        message: ASGI's message: `text` is JSON, `bytes` is MessagePack.
        space: the observations that schema.yaml allows.
        is_raw: whether the frame is `{"obs": [...]}`.
        max_bytes: the largest frame.

    Returns:
        The row, equal to that of the same observation in a POST.

    Raises:
        BodyTooLargeError: if the frame is larger.
        ObservationError: if it is not what the schema describes; the same as for a POST.
    """
    body, is_text = _body_of(message, max_bytes)
    if not is_text:
        return space.parse_values(_unpack(body), is_raw=is_raw)
    return space.parse_raw(body) if is_raw else space.parse_named(body)


def parse_team_frame(message: Message, *, max_bytes: int) -> dict[str, Any]:
    """Return the values of each agent's observation in a frame, which are not checked yet.

    Args:
        message: see `parse_frame`.
        max_bytes: the largest frame.

    Raises:
        BodyTooLargeError: if the frame is larger.
        ObservationError: if it can't be read, or is no dictionary.
    """
    body, is_text = _body_of(message, max_bytes)
    return parse_agents(body) if is_text else check_agents(_unpack(body))


def _body_of(message: Message, max_bytes: int) -> tuple[bytes, bool]:
    """Return the bytes of a frame, and whether it is JSON."""
    text = message.get("text")
    body: bytes = message["bytes"] if text is None else text.encode()
    if len(body) > max_bytes:
        raise BodyTooLargeError(
            f"the frame is larger than {max_bytes} bytes (POLICY_SERVER_MAX_BODY_BYTES)"
        )
    return body, text is not None


def read_reset(message: Message) -> Reset | None:
    """Return the reset that a frame which is no observation asks for; None where it asks for none.

    Args:
        message: the frame.

    Raises:
        ObservationError: if its seed is none.
    """
    value = value_of(message)
    return reset_in(value) if isinstance(value, dict) else None


def reset_in(value: dict[str, Any]) -> Reset | None:
    """Return the reset that a frame asks for; see `read_reset`.

    Args:
        value: the value in the frame.

    Raises:
        ObservationError: if its seed is none.
    """
    if value.get(_RESET) is not True or not value.keys() <= {_RESET, _SEED}:
        return None
    try:
        return Reset.model_validate(value)
    except ValidationError as error:
        raise ObservationError(
            [problem(item["type"], ["body", *item["loc"]], item["msg"]) for item in error.errors()]
        ) from error


def split_frame(message: Message) -> tuple[Message, StatedStep]:
    """Return a frame's observation as a frame of its own, and what it states of the step before.

    Args:
        message: `{"observation": ..., "previous_reward": ..., "previous_action": ...}`, or an
            observation alone.
    """
    value = value_of(message)
    observation, stated = split_values(value)
    if observation is value:
        return message, NOTHING_STATED
    return written_again(message, observation), stated


def written_again(message: Message, value: Any) -> Message:  # noqa: ANN401 -- what the client sent
    """Return a frame of the same encoding with another value.

    Args:
        message: the frame.
        value: a part of its value.

    Raises:
        ObservationError: if it is nested too deeply to be written.
    """
    try:
        if message.get("text") is not None:
            return {"text": orjson.dumps(value).decode()}
        return {"bytes": msgpack.packb(value)}
    except (TypeError, ValueError) as error:
        raise ObservationError(
            [problem("frame_invalid", ["body"], "the frame is nested too deeply")]
        ) from error


def split_values(value: Any) -> tuple[Any, StatedStep]:  # noqa: ANN401 -- what the client sent
    """Return an observation, and what is stated beside it of the step before.

    Args:
        value: as in `split_frame`, already read; an observation alone is returned as it is.
    """
    if not isinstance(value, dict) or OBSERVATION not in value or not value.keys() <= FRAME_WORDS:
        return value, NOTHING_STATED
    return value[OBSERVATION], StatedStep(value.get(_REWARD), value.get(_ACTION))


def value_of(message: Message) -> Any:  # noqa: ANN401 -- what the client sent
    """Return the value in a frame; None where it can't be read.

    Args:
        message: the frame.
    """
    text = message.get("text")
    try:
        return msgpack.unpackb(message["bytes"]) if text is None else orjson.loads(text)
    except (ValueError, msgpack.UnpackException):
        return None


def answer_payload(answer: bytes, *, is_text: bool) -> bytes:
    """Return the payload of an answer's frame.

    Args:
        answer: the JSON of the answer.
        is_text: whether the question was JSON.
    """
    return answer if is_text else msgpack.packb(orjson.loads(answer))


def error_answer(status: int, detail: object) -> bytes:
    """Return the JSON that answers a frame in place of an answer.

    Args:
        status: the status that a POST would be answered with.
        detail: the `detail` that a POST would be answered with.
    """
    return orjson.dumps({"status": status, "detail": detail})


def _unpack(body: bytes) -> Any:  # noqa: ANN401 -- what the client sent
    try:
        # A container may not say that it holds more than the frame has bytes for.
        return msgpack.unpackb(body)
    except msgpack.StackError as error:
        raise _undecodable("nested too deeply") from error
    except msgpack.ExtraData as error:
        raise _undecodable("more than one value in a frame") from error
    except msgpack.FormatError as error:
        raise _undecodable("unknown format") from error
    except ValueError as error:
        # Truncated, text that is no UTF-8, keys that are no text.
        raise _undecodable(str(error)) from error


def _undecodable(reason: str) -> ObservationError:
    return ObservationError(
        [problem("msgpack_invalid", ["body"], f"MessagePack decode error: {reason}")]
    )
