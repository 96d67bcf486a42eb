"""A question about one observation, its answer, and the calls that carry many of them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from policy_server.errors import (
    DistributionError,
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
    UnsupportedAnswerError,
)
from policy_server.observations import Row
from policy_server.policy import (
    NO_SEED,
    AnswerKind,
    Float32Array,
    Float64Array,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
)

__all__ = [
    "Answer",
    "AnsweredCall",
    "BulkAnswer",
    "BulkCall",
    "Call",
    "FutureWaiting",
    "Places",
    "Question",
    "SingleCall",
    "Waiting",
]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Question:
    """One observation, with the kind of its answer.

    Attributes:
        row: the observation's numbers, as many as the policy takes; behind them those of the action
            mask, where the policy takes one: 1 for each allowed choice, 0 for each other.
        kind: the kind of answer: a draw, the mode or the distribution.
        seed: makes the draw reproducible; -1 for an independent one.
        is_copied: whether a shadow gets a copy, and compares the distribution of the answer.
        state: float32[memory_width], the memory of its episode before the step; None for the zero
            state, whose state after the step nobody asks for.
        deadline: when the client has no use for the answer any more, by `time.perf_counter`; None
            leaves that to the scheduler's own limit.
    """

    row: Row
    kind: AnswerKind
    seed: int = NO_SEED
    is_copied: bool = False
    state: Float32Array | None = None
    deadline: float | None = None


class AnsweredCall:
    """The outputs of one call, shared by the answers to all questions in it.

    Attributes:
        outputs: the answers, row by row.
        rendered: the outputs in the form in which they are answered, made once for all answers of
            the call by whoever sends the first of them; None before.
    """

    __slots__ = ("outputs", "rendered")

    def __init__(self, outputs: PolicyOutputs) -> None:
        """Own the outputs, for as long as an answer refers to them."""
        self.outputs = outputs
        self.rendered: Any = None


@dataclass(eq=False, slots=True)
class Answer:
    """The answer to one question.

    Attributes:
        call: the call that had the question.
        index: the question's row in it.
    """

    call: AnsweredCall
    index: int

    @property
    def state(self) -> Float32Array | None:
        """Return float32[memory_width], the memory after the step; None where none was given."""
        states = self.call.outputs.state
        return None if states is None else states[self.index]


_DRAW, _MODE, _NO_SEEDS = np.array([False]), np.array([True]), np.array([NO_SEED], np.int64)
for _constant in (_DRAW, _MODE, _NO_SEEDS):
    _constant.flags.writeable = False


class Places:
    """The places of a queue that are taken.

    Attributes:
        taken: how many questions wait or are being answered.
    """

    __slots__ = ("taken",)

    def __init__(self) -> None:
        """Own the count, which begins at 0."""
        self.taken = 0


class Waiting:
    """A question that is not answered yet; a subclass takes the answer or the error, once.

    Attributes:
        question: the question.
        asked: when it was asked, by `time.perf_counter`.
        deadline: when its answer is too late, by the event loop's clock.
        is_done: whether it was answered, has failed, or was given up.
        places: of the queue that it waits in; of none as long as no scheduler was asked.
    """

    # Of the class: there are tens of thousands a second, and the scheduler sets the others.
    asked = 0.0
    deadline = 0.0
    is_done = False
    places = Places()

    def __init__(self, question: Question) -> None:
        """Own a question, which a scheduler has still to be asked."""
        self.question = question

    def is_wanted(self) -> bool:
        """Return whether the answer is still waited for."""
        return not self.is_done

    def take(self, call: AnsweredCall, index: int) -> None:
        """Take the answer; where this raises, the exception is logged and `abort` is called.

        Args:
            call: the call that had the question.
            index: the question's row in it.
        """
        raise NotImplementedError

    def take_error(self, error: PolicyServerError) -> None:
        """Take the error in place of an answer."""
        raise NotImplementedError

    def abort(self) -> None:
        """End without an answer: whoever waits could not take it."""

    def fail(self, error: PolicyServerError) -> None:
        """Hand over an error, unless the question is done; nothing is raised."""
        if not self.is_done:
            self.is_done = True
            self.places.taken -= 1
            try:
                self.take_error(error)
            except Exception as deaf:
                _end_deaf(self, deaf)

    def give_up(self) -> None:
        """Take the question out of the queue: nobody waits for its answer any more."""
        if not self.is_done:
            self.is_done = True
            self.places.taken -= 1


class FutureWaiting(Waiting):
    """A question whose answer a future takes.

    Attributes:
        future: the answer; cancelling it gives the question up.
    """

    def __init__(self, question: Question) -> None:
        """Own the question and its future."""
        super().__init__(question)
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(self._end)

    def is_wanted(self) -> bool:
        """Return whether the future has no result yet: its callbacks run a turn later."""
        return not self.future.done()

    def take(self, call: AnsweredCall, index: int) -> None:
        """Take the answer, unless the future was cancelled in this turn of the event loop."""
        if not self.future.done():
            self.future.set_result(Answer(call, index))

    def take_error(self, error: PolicyServerError) -> None:
        """Take the error, unless the future was cancelled in this turn of the event loop."""
        if not self.future.done():
            self.future.set_exception(error)

    def _end(self, _future: asyncio.Future[Answer]) -> None:
        self.give_up()


class Call(Protocol):
    """Rows that a backend answers together."""

    @property
    def of_the_whole(self) -> tuple[type[PolicyServerError], ...]:
        """Return the errors that concern the whole call: no half of it is asked again."""

    @property
    def asked(self) -> float:
        """Return when the longest-waiting row was asked, by `time.perf_counter`."""

    @property
    def deadline(self) -> float:
        """Return when the last answer is too late, by the event loop's clock."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def is_wanted(self) -> bool:
        """Return whether an answer is still waited for."""

    def waiting(self) -> int:
        """Return how many of its rows are still waited for."""

    def inputs(self, signature: PolicySignature) -> PolicyInputs:
        """Return the rows with their options, as a backend of that signature takes them."""

    def halves(self) -> tuple[Call, Call]:
        """Return two calls of half the rows each."""

    def succeed(self, outputs: PolicyOutputs) -> None:
        """Give each question its answer."""

    def fail(self, error: Exception) -> None:
        """Give each question the error."""


class SingleCall:
    """Questions of many requests in one call."""

    of_the_whole: tuple[type[PolicyServerError], ...] = (NotReadyError, OverloadedError)

    def __init__(self, waiting: list[Waiting]) -> None:
        """Own the questions, at least one, until the call ends."""
        self._waiting = waiting

    @property
    def asked(self) -> float:
        """Return when the first question was asked."""
        return self._waiting[0].asked

    @property
    def deadline(self) -> float:
        """Return when the last question is given up."""
        return self._waiting[-1].deadline

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._waiting)

    def is_wanted(self) -> bool:
        """Return whether any request still waits."""
        return any(item.is_wanted() for item in self._waiting)

    def waiting(self) -> int:
        """Return how many questions are still waited for."""
        return sum(item.is_wanted() for item in self._waiting)

    def expire(self, now: float, error: PolicyServerError) -> int:
        """Fail the questions whose deadline has come, and return how many that were.

        Args:
            now: the time by the event loop's clock.
            error: the error that they get.
        """
        late = [item for item in self._waiting if item.deadline <= now and item.is_wanted()]
        for item in late:
            item.fail(error)
        return len(late)

    def inputs(self, signature: PolicySignature) -> PolicyInputs:
        """Return the questions' rows in columns; see `Call.inputs`."""
        questions = [item.question for item in self._waiting]
        dtype: type[np.floating[Any]] = signature.row_dtype
        rows: Float32Array | Float64Array = np.array([item.row for item in questions], dtype)
        if len(questions) == 1:
            return self._inputs_of_one(rows, questions[0], signature)
        kinds = [item.kind for item in questions]
        return PolicyInputs.of_rows(
            rows,
            signature,
            is_deterministic=np.array([kind != "predict" for kind in kinds]),
            seeds=np.array([item.seed for item in questions], np.int64),
            wants_distribution=(
                "distribution" in kinds or any(item.is_copied for item in questions)
            ),
            state=_states_of(questions, signature) if signature.memory else None,
        )

    @staticmethod
    def _inputs_of_one(
        rows: Float32Array | Float64Array, question: Question, signature: PolicySignature
    ) -> PolicyInputs:
        """Return the inputs of one row, most of which are as those of the row before."""
        return PolicyInputs.of_rows(
            rows,
            signature,
            is_deterministic=_DRAW if question.kind == "predict" else _MODE,
            seeds=_NO_SEEDS if question.seed == NO_SEED else np.array([question.seed], np.int64),
            wants_distribution=question.kind == "distribution" or question.is_copied,
            state=_states_of([question], signature) if signature.memory else None,
        )

    def halves(self) -> tuple[SingleCall, SingleCall]:
        """Return the questions that are still waited for, in two calls; either may be empty."""
        middle = len(self._waiting) // 2
        first, second = (
            SingleCall([item for item in half if item.is_wanted()])
            for half in (self._waiting[:middle], self._waiting[middle:])
        )
        return first, second

    def succeed(self, outputs: PolicyOutputs) -> None:
        """Answer every question that is still waited for; nothing is raised."""
        call, rest = AnsweredCall(outputs), enumerate(self._waiting)
        while True:
            # Outside of the loop, which goes on behind a question whose answer was not taken.
            try:
                for index, item in rest:
                    if not item.is_done:
                        item.is_done = True
                        item.places.taken -= 1
                        item.take(call, index)
            except Exception as deaf:
                _end_deaf(item, deaf)
            else:
                return

    def fail(self, error: Exception) -> None:
        """Give the error to every question that is still waited for."""
        failed = PolicyFailedError.of(error)
        for item in self._waiting:
            item.fail(failed)


def _end_deaf(item: Waiting, error: Exception) -> None:
    """End a question whose answer or error was not taken, and log why.

    The others of its call have their answers yet to come, so that nothing may be raised.
    """
    logger.error("answer_not_taken", exc_info=error)
    try:
        item.abort()
    except Exception:
        logger.exception("answer_not_taken")


def _states_of(questions: list[Question], signature: PolicySignature) -> Float32Array | None:
    """Return float32[B, memory_width]: zeros for a question without state; None without any."""
    if len(questions) == 1:
        state = questions[0].state
        return None if state is None else state[None]
    if all(question.state is None for question in questions):
        return None
    states = np.zeros((len(questions), signature.memory_width), np.float32)
    for index, question in enumerate(questions):
        if question.state is not None:
            states[index] = question.state
    return states


class BulkAnswer:
    """The answer to many rows, put together from the calls that they were cut into.

    Attributes:
        outputs: holds the answers in the rows' order, or the error, once it is there.
    """

    def __init__(self, rows: int) -> None:
        """Own the answers that have come, until all are there.

        Args:
            rows: the number of rows.
        """
        self.outputs: asyncio.Future[PolicyOutputs] = asyncio.get_running_loop().create_future()
        self._missing = rows
        self._parts: dict[int, PolicyOutputs] = {}

    def add(self, first: int, outputs: PolicyOutputs) -> None:
        """Take the answers of one call.

        Args:
            first: the index of its first row.
            outputs: the answers.
        """
        self._parts[first] = outputs
        self._missing -= len(outputs)
        if not self._missing and not self.outputs.done():
            parts = [self._parts[key] for key in sorted(self._parts)]
            self.outputs.set_result(PolicyOutputs.joined(parts))

    def fail(self, error: PolicyServerError) -> None:
        """End with an error, unless it has ended."""
        if not self.outputs.done():
            self.outputs.set_exception(error)


@dataclass(frozen=True, eq=False)
class BulkCall:
    """Rows of one request that follow each other.

    Attributes:
        rows: the rows, with the options of each.
        first: the index of the first row in the request, which errors name.
        answer: takes the outputs.
        asked: when they were asked, by `time.perf_counter`.
        deadline: when the answer is too late, by the event loop's clock.
    """

    rows: PolicyInputs
    first: int
    answer: BulkAnswer
    asked: float
    deadline: float

    @property
    def of_the_whole(self) -> tuple[type[PolicyServerError], ...]:
        """Return the errors of the backend, and those that the batch's kind or seed brings."""
        return (NotReadyError, OverloadedError, UnsupportedAnswerError)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def is_wanted(self) -> bool:
        """Return whether the request still waits, and no other row has failed."""
        return not self.answer.outputs.done()

    def waiting(self) -> int:
        """Return the number of rows while the request waits, else 0."""
        return len(self) if self.is_wanted() else 0

    def inputs(self, signature: PolicySignature) -> PolicyInputs:  # noqa: ARG002 -- theirs fit
        """Return the rows; see `Call.inputs`."""
        return self.rows

    def halves(self) -> tuple[BulkCall, BulkCall]:
        """Return two calls of half the rows each; the first that fails has the row to blame."""
        middle = len(self) // 2
        return self._part(0, middle), self._part(middle, len(self))

    def _part(self, start: int, stop: int) -> BulkCall:
        rows, first = self.rows.part(start, stop), self.first + start
        return BulkCall(rows, first, self.answer, self.asked, self.deadline)

    def succeed(self, outputs: PolicyOutputs) -> None:
        """Hand the outputs to the request."""
        self.answer.add(self.first, outputs)

    def fail(self, error: Exception) -> None:
        """End the request with the error; where one row is to blame, the message names it."""
        failed = PolicyFailedError.of(error)
        if not isinstance(error, self.of_the_whole):
            kind = DistributionError if isinstance(error, DistributionError) else PolicyFailedError
            failed = kind(f"observation {self.first}: {failed.message}")
            failed.__cause__ = error
        self.answer.fail(failed)
