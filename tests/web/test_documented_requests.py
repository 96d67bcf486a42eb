"""What an example's OpenAPI document allows is answered, and what it forbids is refused."""

from __future__ import annotations

from tests.fuzz.documents import ask_documented


def test_example_answers_as_its_document_says() -> None:
    statuses = ask_documented(
        1,
        seed=21,
        homes=["mouse_and_cheese"],
        phases="examples,coverage",
        paths=["/predict", "/distribution_raw"],
    )

    assert set(statuses) >= {"200", "401", "405", "422"}
    assert statuses.total() > 50


def test_headers_of_steps_are_taken_as_the_document_says() -> None:
    statuses = ask_documented(
        1,
        seed=21,
        homes=["conveyor"],
        phases="examples,coverage",
        paths=["/predict_raw", "/sessions/{session_id}/distribution_raw"],
    )

    assert set(statuses) >= {"200", "404", "422"}
