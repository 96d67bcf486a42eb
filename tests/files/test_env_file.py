"""`.env`: lines that can't be read, and whatever is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy_server.errors import SettingsError
from policy_server.files.env_file import check_lines, read_env_file, variables_of

NAMES = ("POLICY_SERVER_API_KEY", "POLICY_SERVER_METRICS_KEY")
EXPECTED = (
    "expected NAME=value on a line of its own; a value that begins with a quote ends with the same "
    "one, and no other text but a comment stands behind it"
)
UNREADABLE = {
    "quote not closed": "POLICY_SERVER_METRICS_KEY='hunter2",
    "double quote not closed": 'POLICY_SERVER_METRICS_KEY="hunter2',
    "colon": "POLICY_SERVER_METRICS_KEY: hunter2",
    "colon and no value": "POLICY_SERVER_METRICS_KEY:",
    "text behind the quote": 'POLICY_SERVER_METRICS_KEY="abc"hunter2',
    "no equals sign": "POLICY_SERVER_METRICS_KEY",
    "exported, no equals sign": "export POLICY_SERVER_METRICS_KEY",
    "blank for the equals sign": "POLICY_SERVER_METRICS_KEY hunter2",
    "lower case": "policy_server_metrics_key: hunter2",
    "a shell's set": "set POLICY_SERVER_METRICS_KEY=hunter2",
    "an item of a list": "- POLICY_SERVER_METRICS_KEY=hunter2",
    "name in quotes": '"POLICY_SERVER_METRICS_KEY"=hunter2',
    "PowerShell": '$env:POLICY_SERVER_METRICS_KEY="hunter2"',
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_line_of_a_setting_that_cannot_be_read_is_named_without_its_text(line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_lines(f"# a comment\nOTHER=1\n\n{line}\nLAST=2\n", "POLICY_SERVER_", NAMES)

    assert caught.value.message == f"line 4: POLICY_SERVER_METRICS_KEY can't be read; {EXPECTED}"


def test_name_that_is_no_setting_is_not_told() -> None:
    with pytest.raises(SettingsError) as caught:
        check_lines("POLICY_SERVER_HUNTER2: 1\r\n", "POLICY_SERVER_", NAMES)

    assert caught.value.message == f"line 1: can't be read; {EXPECTED}"


@pytest.mark.parametrize(
    "text",
    [
        "OTHER='abc\nPOLICY_SERVER_METRICS_KEY=hunter2\nLAST='",
        'OTHER="abc\n  export POLICY_SERVER_METRICS_KEY = "hunter2"\n',
        "POLICY_SERVER_API_KEY='abc\nPOLICY_SERVER_METRICS_KEY='hunter2'\n",
    ],
    ids=["another program's", "exported", "a setting's"],
)
def test_quote_that_takes_the_line_of_a_setting_in_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^line 1: "):
        check_lines(text, "POLICY_SERVER_", NAMES)


FINE = {
    "settings": "POLICY_SERVER_API_KEY='a b' # POLICY_SERVER_X:\nexport POLICY_SERVER_METRICS_KEY=",
    "comment": "# POLICY_SERVER_METRICS_KEY: hunter2\n",
    "another program's lines": "A: 1\nB='\nC\nMY_POLICY_SERVER_URL: x\nTHE_POLICY_SERVER_KEY=1\n",
    "another program's value": "A=${POLICY_SERVER_API_KEY}\nB='x\n# of POLICY_SERVER_API_KEY'\n",
    "mark of the encoding": "\ufeffPOLICY_SERVER_API_KEY=x\n",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("text", FINE.values(), ids=FINE)
def test_lines_that_name_no_setting_wrongly_pass(text: str) -> None:
    check_lines(text, "POLICY_SERVER_", NAMES)


def test_variables_are_those_of_the_lines_that_can_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "\n\nA=1\nOTHER: 2\n\nB='x\ny' # b\nC=${A}\nD\n"

    assert variables_of(text) == {"A": "1", "B": "x\ny", "C": "${A}", "D": None}
    assert caplog.text == ""


def test_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env") == ""


def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")

    with pytest.raises(OSError, match="it is a named pipe; expected a file"):
        read_env_file(tmp_path / ".env")


def test_folder_is_no_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()

    with pytest.raises(OSError, match="it is a folder; expected a file"):
        read_env_file(tmp_path / ".env")


def test_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(tmp_path / "missing")

    with pytest.raises(OSError, match="it is a link that leads nowhere; expected a file"):
        read_env_file(tmp_path / ".env")


def test_python_environment_of_that_name_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    (tmp_path / ".env" / "pyvenv.cfg").touch()

    assert read_env_file(tmp_path / ".env") == ""


def test_null_device_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(os.devnull)

    assert read_env_file(tmp_path / ".env") == ""
