"""Names of observations for an export."""

from __future__ import annotations

import pytest

from policy_server.commands import export
from policy_server.errors import SettingsError


def test_names_are_read_with_their_numbers_of_values() -> None:
    assert export.parse_names("observation-names", "speed, position:2,mask:10") == {
        "speed": 1,
        "position": 2,
        "mask": 10,
    }


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", "a:", "a:x", ":2", "a:-1"])
def test_names_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--observation-names: expected names such as"):
        export.parse_names("observation-names", text)
