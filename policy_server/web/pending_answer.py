"""The answer to one observation that was asked for, and comes later."""

from __future__ import annotations

from collections.abc import Callable

from policy_server.errors import PolicyServerError
from policy_server.serving import (
    Answer,
    AnsweredCall,
    EpisodeSteps,
    PolicyVersion,
    Question,
    StatedStep,
    Waiting,
)
from policy_server.web.answering import PolicyAnswering
from policy_server.web.pending import Pending

__all__ = ["PendingAnswer"]


class PendingAnswer(Waiting, Pending):
    """An answer that the scheduler was asked for, and that comes later."""

    def __init__(
        self, policy: PolicyAnswering, version: PolicyVersion, question: Question, request_id: str
    ) -> None:
        """Own the question, which is still to be asked.

        Args:
            policy: renders the answer.
            version: gives it.
            question: the question.
            request_id: the name of the request in the logs.
        """
        super().__init__(question)
        self._policy = policy
        self._version = version
        self._request_id = request_id
        self._outcome: Answer | PolicyServerError | None = None
        self._then: Callable[[], None] | None = None
        # The step of an episode that waits in its place, until the answer is there.
        self._step: Waiting | None = None

    def ask(self, steps: EpisodeSteps | None, stated: StatedStep) -> None:
        """Ask the question.

        Args:
            steps: the steps of its episode, to which this one is added; None for the zero state.
            stated: what the client states of the episode's step before.

        Raises:
            PolicyServerError: if the policy takes no question now.
        """
        if steps is None:
            self._version.scheduler.put(self)
        else:
            self._step = steps.ask(self, stated)

    def wait(self, then: Callable[[], None]) -> bool:
        """Return whether the answer is there; see `Pending.wait`."""
        self._then = then
        return self._outcome is not None

    def finish(self) -> bytes:
        """Return the JSON of the answer; see `PolicyAnswering.render`.

        Raises:
            PolicyServerError: if the policy can't answer.
        """
        outcome = self._outcome
        assert outcome is not None, "the answer is there"
        if isinstance(outcome, PolicyServerError):
            raise outcome
        return self._policy.render(
            self._version, self.question, outcome.call, outcome.index, self._request_id
        )

    def abandon(self) -> None:
        """Take the question out of the queue; see `Pending.abandon`."""
        step, self._step, self._then = self._step, None, None
        if step is None:
            self.give_up()
        else:
            step.give_up()

    def take(self, call: AnsweredCall, index: int) -> None:
        """Take the answer; see `Waiting`."""
        self._end(Answer(call, index))

    def take_error(self, error: PolicyServerError) -> None:
        """Take the error in place of an answer; see `Waiting`."""
        self._end(error)

    def _end(self, outcome: Answer | PolicyServerError) -> None:
        self._outcome = outcome
        then, self._step, self._then = self._then, None, None
        if then is not None:
            then()
