"""A shadow of a policy that takes observations of several widths."""

from __future__ import annotations

from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY
from policy_server.schema import parse_schema
from policy_server.serving import Question
from policy_server.serving.shadow import Shadow
from tests.support.fakes import FakeBackend, integer_backend, signature_of, slot_of
from tests.support.waiting import until

SCHEMA = parse_schema('observations: {links: {type: "List[float]", example: [1.0, 2.0]}}')


def open_backend() -> FakeBackend:
    """Return a policy that takes observations of any width."""
    known = integer_backend()
    signature = signature_of(
        known.signature.components, width=None, outputs=known.signature.action_outputs
    )
    return FakeBackend(signature, known.bias)


async def test_copies_of_several_widths_are_all_compared() -> None:
    answering, shadowing = slot_of(open_backend(), SCHEMA), slot_of(open_backend(), SCHEMA)
    await answering.start()
    await shadowing.start()
    version = answering.current()
    shadow = Shadow(shadowing.current(), Metrics().of(DEFAULT_POLICY))
    for width in (2, 3, 3, 2, 2, 2, 3, 2):
        question = Question([0.0] * width, "predict_deterministic", is_copied=True)
        shadow.offer(version, question, await version.scheduler.answer(question))

    await until(lambda: shadow.report().copies + shadow.report().failed == 8)

    report = shadow.report()
    assert (report.copies, report.failed, report.dropped) == (8, 0, 0)
    assert report.same_mode == 1.0
    shadow.close()
    await answering.aclose()
    await shadowing.aclose()


async def test_copy_that_is_no_row_of_numbers_fails_by_itself() -> None:
    slot = slot_of(open_backend(), SCHEMA)
    await slot.start()
    version = slot.current()
    shadow = Shadow(version, Metrics().of(DEFAULT_POLICY))
    question = Question([0.0, 1.0], "predict_deterministic", is_copied=True)
    answer = await version.scheduler.answer(question)
    # What no reader of observations gives.
    odd = Question(["x", "y"], "predict_deterministic", is_copied=True)  # type: ignore[list-item]  # on purpose
    for asked in (odd, question):
        shadow.offer(version, asked, answer)

    await until(lambda: shadow.report().failed == 2)

    assert shadow.report().reason == "ValueError"
    shadow.close()
    await slot.aclose()
