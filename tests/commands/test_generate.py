"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import generate
from policy_server import __version__
from policy_server.commands.command_line import command, progress_bar, run
from policy_server.formats import load_policy
from policy_server.policy import PolicyInputs
from tests.support.command_line import started_command, type_in
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES, cases_of, raw_rows
from tests.support.processes import child, descendants, is_running
from tests.support.servers import KEY, SCHEMA

COMMANDS = [
    "clean",
    "clients",
    "copy_server_files",
    "deploy",
    "digest",
    "evaluate",
    "export",
    "fetch",
    "hash_key",
    "inspect",
    "predict",
    "promote",
    "realtime",
    "rollback",
    "schema",
    "serve",
    "status",
    "undeploy",
    "unzip",
]

WRONG_VALUES = {
    "deploy x --traffic 101": "--traffic: expected a number from 0 to 100, got 101.0",
    "deploy x --traffic nan": "--traffic: expected a number from 0 to 100, got nan",
    "deploy x --traffic -1": "--traffic: expected a number from 0 to 100, got -1.0",
    "deploy x --traffic inf": "--traffic: expected a number from 0 to 100, got inf",
    "promote --after 0": "--after: expected a whole number from 1, got 0",
    "promote --after -5": "--after: expected a whole number from 1, got -5",
    "promote --max-disagreement 2 --after 1": (
        "--max-disagreement: expected a number from 0 to 1, got 2.0"
    ),
    "promote --max-disagreement nan --after 1": (
        "--max-disagreement: expected a number from 0 to 1, got nan"
    ),
    "promote --max-disagreement 0.1": (
        "--max-disagreement: say by --after how many questions are compared first"
    ),
    "predict --seed -1": "--seed: expected a whole number from 0 to 9223372036854775807, got -1",
    "predict --seed 9223372036854775808": (
        "--seed: expected a whole number from 0 to 9223372036854775807, got 9223372036854775808"
    ),
    "digest ''": "PATH: expected a value, got an empty text",
    "deploy ''": "PATH: expected a value, got an empty text",
    "copy_server_files ''": "PATH: expected a value, got an empty text",
    "inspect --path=": "PATH: expected a value, got an empty text",
    "schema ''": "PATH: expected a value, got an empty text",
    "evaluate ''": "PATH: expected a value, got an empty text",
    "export ''": "POLICY: expected a value, got an empty text",
    "fetch ''": "URI: expected a value, got an empty text",
    "fetch x --schema-uri ''": "--schema-uri: expected a value, got an empty text",
    "schema --output ''": "--output: expected a value, got an empty text",
    "clients --output=": "--output: expected a value, got an empty text",
    "export x --normalization ''": ("--normalization: expected a value, got an empty text"),
    "realtime --picture ''": "--picture: expected a value, got an empty text",
    "deploy x --policy ''": "--policy: expected a value, got an empty text",
    "deploy x --url ''": "--url: expected a value, got an empty text",
    "deploy x --version ''": "--version: expected a value, got an empty text",
    "inspect --policy ''": "--policy: expected a value, got an empty text",
    "promote --version ''": "--version: expected a value, got an empty text",
    "realtime --observation ''": "--observation: expected a value, got an empty text",
    "realtime --uds ''": "--uds: expected a value, got an empty text",
    "schema --module ''": "--module: expected a value, got an empty text",
    "serve --host ''": "--host: expected a value, got an empty text",
    "status --policy '' --key=k": "--policy: expected a value, got an empty text",
}
OBSERVATION = '{"links": [1e-3, 2], "is_open": false}'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command works in a folder of its own, which has the live server's schema."""
    monkeypatch.delenv("POLICY_SERVER_API_KEY", raising=False)
    monkeypatch.setenv("POLICY_SERVER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    return tmp_path


# Help and usage


def test_without_arguments_the_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == COMMANDS
    assert generate.main(["--help"]) == generate.main(["-h"]) == 0
    assert capsys.readouterr().out == text * 2


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"python generate.py {name}")
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_help_text_names_arguments_options_and_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    generate.main(["evaluate", "examples/lpoc", "-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "evaluate PATH [--url URL]" in text
    assert "[--episodes EPISODES]" in text
    assert (
        "--episodes EPISODES How many the policy plays, and how many are played at random." in text
    )
    assert "(default: 100)" in text
    assert "--deterministic Take the policy's mode" in text


def test_help_is_quick_and_needs_no_terminal() -> None:
    code = (
        "import sys, runpy; sys.argv = ['generate.py', '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"try: runpy.run_path({str(ROOT / 'generate.py')!r}, run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "print(sorted({'fastapi', 'ray', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert ended.stderr == ""


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--version"]) == 0
    assert capsys.readouterr().out == f"Policy Server {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "frobnicate: is no command; expected one of clean, clients, "),
        (["frobnicate", "--help"], "frobnicate: is no command"),
        (["inspekt"], "inspekt: is no command; did you mean inspect?"),
        (["--url=x"], "--url=x: is no command"),
        (["copy_server_files"], "PATH: is missing"),
        (["copy-server-files"], "PATH: is missing"),
        (["unzip", "a", "b"], "a: is one argument too many"),
        (["unzip", "--fast"], "--fast: is no option of unzip; it takes none"),
        (["inspect", "--josn"], "--josn: is no option of inspect; did you mean --json?"),
        (["fetch", "x", "--schema-url=y"], "--schema-url: is no option of fetch; did you mean"),
        (["schema", "--output"], "--output: expected a value, got none"),
        (["predict", "--url", "--deterministic"], "--url: expected a value, got none"),
        (["predict", "--url", "here"], "--url: expected an address such as"),
        (["predict", "--deterministic", "--distribution"], "ask for two answers"),
        (["predict", "--seed=1", "--distribution"], "--seed is for draws"),
        (["evaluate", "x", "--episodes=0"], "expected --episodes from 2"),
        (["predict", "[1]", "--policy", "."], "--policy: expected a name of letters, digits"),
        (["realtime", "--policy="], "--policy: expected a value, got an empty text"),
        (["realtime", "--policy=a,,b"], "--policy: expected a name of letters, digits"),
        (["status", "--policy", "a b", "--key=k"], "--policy: expected a name of letters, digits"),
        (["rollback", "--policy", "..", "--key=k"], "--policy: expected a name of letters, digits"),
        (["undeploy", "a/b", "--key=k"], "VERSION: expected a name of letters, digits"),
        (["clients", "--languages=cobol"], "--languages: expected all, or some of"),
        (["fetch", "ftp://x"], "URI: expected s3://"),
        (["export", "x.zip", "--observation-names=a,,b"], "--observation-names: expected names"),
        (["inspect", "--json=yes"], "--json: takes no value, got 'yes'"),
        (["serve", "--port", "65536"], "--port: expected a number from 0 to 65535, got 65536"),
        (["serve", "--workers=0"], "--workers: expected a number from 1, got 0"),
        (["serve", "--reload", "--workers=2"], "--reload: starts one process again; leave"),
        (["serve", "--uds=s", "--port=3"], "--uds: stands in place of a host and a port; leave"),
        # Empty, it believes no proxy.
        (["serve", "--forwarded-allow-ips=", "--uds=s", "--port=3"], "--uds: stands in place"),
        (["serve", "--uds="], "--uds: expected a value, got an empty text"),
        (["serve", "app:app"], "app:app: is one argument too many"),
        (["evaluate", "x", "--episodes", "many"], "--episodes: expected a whole number"),
        (["predict", "--seed=1.5"], "--seed: expected a whole number, got '1.5'"),
        (["digest", "schema.yaml", "run"], "run: is one argument too many"),
        (["digest", "schema.yaml", "_start"], "_start: is one argument too many"),
        (["predict", "[1]", "--", "--url=x"], "--url=x: is one argument too many"),
        (["unzip", "--", "--trace"], "--trace: is one argument too many"),
        (["--", "unzip"], "--: is no command"),
        (["__class__"], "__class__: is no command"),
        (["schema", "--nooutput"], "--nooutput: is no option of schema; did you mean --output?"),
        (["predict", "--nourl"], "--nourl: is no option of predict"),
        (["clients", "-o"], "-o: is no option of clients"),
        (["status", "-k"], "-k: is no option of status"),
        (["inspect", "--self=x"], "--self: is no option of inspect"),
        (["inspect", "--path=x", "y"], "y: is one argument too many"),
        (["inspect", "y", "--path=x"], "y: is one argument too many"),
        (["status", "--key", "--json"], "--key: expected a value, got none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_usage_ends_with_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("generate.py: ")
    assert message in captured.err.splitlines()[0]
    assert "\nusage: python generate.py " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_after_a_mistake_is_that_of_the_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.main([name, "--help"])
    shown = capsys.readouterr().out.partition("\n\n")[0]
    assert generate.main([name, "--no-such-option"]) == 2
    usage = capsys.readouterr().err.partition("usage: ")[2]
    assert usage == f"{shown}\n"
    assert "_" not in usage.replace(name, "")


@pytest.mark.parametrize(
    "words",
    [["--dry-run"], ["run"], ["_start"], ["--", "--dry-run"], ["--", "run"], ["-n"]],
    ids=" ".join,
)
def test_a_command_does_not_run_where_its_arguments_are_wrong(words: list[str], home: Path) -> None:
    (home / "saved_model.zip").touch()
    assert generate.main(["clean", *words]) == 2
    assert sorted(path.name for path in home.iterdir()) == ["saved_model.zip", "schema.yaml"]


class _Saying:
    """A command that gives back its arguments."""

    @command
    def say(self, text: str, *, key: str = "", loud: bool = False) -> Iterator[str]:
        """Say what is given."""
        yield f"{text} {key} {loud}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--key", "-abc", "a"], "a -abc False"),
        (["a", "--key", "-1_b", "--loud"], "a -1_b True"),
        (["--key=--abc", "--", "-a"], "-a --abc False"),
        (["--loud", "--", "--"], "--  True"),
        (["-", "--key=-"], "- - False"),
        (["a=b", "--key", "x=y"], "a=b x=y False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_may_begin_as_an_option_does(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_Saying, ["say", *words], program="generate.py") == 0
    assert capsys.readouterr().out == f"{line}\n"


# Errors


def test_an_error_is_one_line_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["copy_server_files", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "generate.py: nowhere: not found; expected a folder with schema.yaml and a policy, such as "
        "saved_model.zip\n"
    )


def test_a_python_without_the_packages_is_told_what_to_do() -> None:
    ended = subprocess.run(
        [sys.executable, "-S", str(ROOT / "generate.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("generate.py: needs the package ")
    assert "requirements.txt" in ended.stderr


def test_an_older_python_is_told_in_one_line() -> None:
    code = (
        "import sys, runpy; sys.version_info, sys.version = (3, 10, 12), '3.10.12 (main)'\n"
        f"runpy.run_path({str(ROOT / 'generate.py')!r}, run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "generate.py: needs Python 3.11 or newer, not 3.10.12; use .venv/bin/python after "
        "`make venv`\n"
    )


def test_a_setting_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_BACKEND", "cloud")
    assert generate.main(["clean"]) == 1
    assert capsys.readouterr().err.startswith("generate.py: POLICY_SERVER_BACKEND: expected")


def test_reloading_needs_the_folder_of_the_files(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_HOME", str(home / "missing"))
    # A server that starts all the same would take this process.
    monkeypatch.setattr("os.execv", lambda *_: None)

    assert generate.main(["serve", "--reload"]) == 1

    assert "missing: expected the folder of the server's files\n" in capsys.readouterr().err


def test_inspect_of_a_policy_that_no_schema_names_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(POLICIES / "sb3_ppo_box" / "policy.zip", tmp_path / "alone")

    assert generate.main(["inspect", "alone/policy.zip", "--policy", "nosuch"]) == 1

    assert "--policy: 'nosuch' is of no schema.yaml" in capsys.readouterr().err


class _Failing:
    """Commands that fail."""

    @command
    def crash(self) -> Iterator[str]:
        """Fail unforeseen."""
        yield "so far"
        raise ValueError("two\nlines")

    @command
    def stop(self) -> Iterator[str]:
        """Be interrupted."""
        yield "so far"
        raise KeyboardInterrupt


def test_an_unforeseen_error_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_Failing, ["crash"], program="python generate.py") == 1
    captured = capsys.readouterr()
    assert captured.out == "so far\n"
    assert captured.err == (
        "generate.py: unexpected ValueError: two lines; `PYTHONDEVMODE=1 python generate.py ...` "
        "shows where\n"
    )


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_Failing, ["stop"], program="python generate.py") == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_evaluation_that_a_signal_ends_has_its_status_and_no_traceback(
    home: Path, url: str, number: int, status: int
) -> None:
    (home / "environment.py").write_text(
        textwrap.dedent(
            """
            import pathlib, time

            class Endless:
                def reset(self, *, seed=None):
                    return [0.0, 0.0, 0.0], {}

                def step(self, action):
                    pathlib.Path("started").touch()
                    return [0.0, 0.0, 0.0], 0.0, False, False, {}

                def named_observation(self, observation):
                    return observation

                def action_from(self, actions):
                    return actions[0]

            make_environment = Endless
            """
        )
    )
    with started_command("evaluate", ".", "--url", url) as program:
        program.wait_until((home / "started").exists)
        program.process.send_signal(number)
        assert program.finish() == (status, "", "")


@pytest.mark.parametrize("is_in_background", [False, True], ids=["foreground", "background"])
def test_generating_clients_leaves_nothing_when_sigterm_ends_it(
    home: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    is_in_background: bool,  # noqa: FBT001 -- a parameter
) -> None:
    scratch = home / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    # As a shell without a terminal does for a command with & behind it.
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_in_background else None
    try:
        with started_command("clients", "--url", url, "--languages", "python") as program:
            program.wait_until(lambda: list(scratch.glob(".unfinished-*/openapi.json")))
            below = program.wait_until(lambda: descendants(program.process.pid))
            program.process.terminate()
            ended = program.finish()
    finally:
        if usual is not None:
            signal.signal(signal.SIGINT, usual)

    assert ended == (143, "", "")
    assert list(scratch.iterdir()) == []
    assert not any(is_running(pid) for pid in below)
    assert not (home / "clients").exists()


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    script = (
        "from policy_server.commands.command_line import command, run\n"
        "import sys\n"
        "class Commands:\n"
        "    @command\n"
        "    def count(self):\n"
        "        yield from ('x' * 1000 for _ in range(10_000))\n"
        "sys.exit(run(Commands, ['count'], program='count.py'))\n"
    )
    (home / "count.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with child(sys.executable, home / "count.py", environment=environment) as program:
        assert program.process.stdout is not None
        assert program.process.stderr is not None
        program.read_line()
        program.process.stdout.close()
        assert program.process.stderr.read() == ""
        assert program.process.wait(60) == 141


# Commands


def test_a_policy_is_put_in_place_and_removed_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = home / "source"
    source.mkdir()
    (source / "schema.yaml").write_text("parameters: {api_key: x}")
    model = ROOT / "examples" / "mouse_and_cheese" / "saved_model.zip"
    shutil.copyfile(model, source / "saved_model.zip")

    assert type_in("copy_server_files", "source") == (
        0,
        f"copied schema.yaml and saved_model.zip from source to {home}\n"
        f"unzipped the policy to {home}/models\n"
        "serve the policy:  uvicorn app:app\n"
        "look into it:      python generate.py inspect\n",
        "",
    )
    assert (home / "models" / "saved_model.pb").exists()
    assert generate.main(["copy-server-files", "source"]) == 0
    assert generate.main(["unzip"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"unzipped {home}/saved_model.zip to {home}/models"
    )
    assert generate.main(["clean"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"removed {home}/saved_model.zip"
    assert generate.main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_inspect_and_schema_work_on_an_example(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(ROOT / "examples" / "mouse_and_cheese")

    code, out, err = type_in("inspect", example)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("schema.yaml fits")

    assert generate.main(["schema", example, "--output", "schema.yaml"]) == 1
    assert (home / "schema.yaml").read_text() == SCHEMA
    assert generate.main(["schema", example, "--output=schema.yaml", "--overwrite"]) == 0
    capsys.readouterr()
    assert generate.main(["schema", example]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    without_key = [line for line in out.splitlines() if "api_key" not in line]
    drafted = (home / "schema.yaml").read_text().splitlines()
    assert without_key == [line for line in drafted if "api_key" not in line]


def test_inspect_ends_with_1_where_the_schema_does_not_fit(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "examples" / "mouse_and_cheese"
    (home / "saved_model.zip").write_bytes((example / "saved_model.zip").read_bytes())

    assert generate.main(["inspect", "--json", "saved_model.zip"]) == 1

    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema_fits"] is False
    assert "gives 3 values, the policy expects 6" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["[1,2,1]"],
        ['{"links": [1, 2], "is_open": true}'],
        ["--deterministic", '{"links": [1, 2], "is_open": true}'],
        ["--observation", "[1, 2, 1]", "--key", KEY],
        ["observation.json"],
        [],
    ],
    ids=["list", "object", "behind-a-flag", "options", "file", "example"],
)
def test_predict_takes_an_observation_in_every_form(
    home: Path, url: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "observation.json").write_text(OBSERVATION)

    assert generate.main(["predict", *arguments, "--url", url]) == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out)["actions"] in ([0], [1])
    example = 'the server\'s example: {"links": [0.0, 0.0], "is_open": true}\n'
    assert captured.err == ("" if arguments else example)


def test_predict_takes_an_observation_from_standard_input(url: str) -> None:
    code, out, err = type_in("predict", "-", "--url", url, piped=OBSERVATION)

    assert (code, err) == (0, "")
    assert json.loads(out)["actions"] in ([0], [1])


def test_predict_gives_the_distribution(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["predict", "[1, 2, 1]", "--distribution", f"--url={url}"]) == 0
    (component,) = json.loads(capsys.readouterr().out)["components"]
    assert component["probabilities"] == pytest.approx([0.2, 0.8])


def test_predict_is_reproducible_with_a_seed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert generate.main(["predict", "[1, 2, 1]", "--seed", "7", "--url", url]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_predict_puts_refusals_in_words(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["predict", '{"links": [1], "is_open": 1}', "--url", url]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"generate.py: {url}/predict: refused, since",
        "  links: List should have at least 2 items after validation, not 1",
        "  is_open: Input should be a valid boolean",
    ]


def test_predict_takes_the_key_of_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLICY_SERVER_API_KEY", "wrong")
    assert generate.main(["predict", "[1, 2, 1]", "--url", url]) == 1
    assert "wrong access key" in capsys.readouterr().err


def test_evaluate_prints_a_table_or_a_row(
    home: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "environment.py").write_text(
        textwrap.dedent(
            """
            class Once:
                def reset(self, *, seed=None):
                    return [0.0, 0.0, 0.0], {}

                def step(self, action):
                    return [0.0, 0.0, 0.0], float(action), True, False, {}

                def named_observation(self, observation):
                    return observation

                def action_from(self, actions):
                    return actions[0]

                def random_action(self, generator):
                    return 0

            make_environment = Once
            """
        )
    )
    arguments = ["evaluate", ".", "--episodes", "3", "--deterministic", "--url", url]

    assert generate.main(arguments) == 0
    assert generate.main([*arguments, "--markdown"]) == 0

    *table, row = capsys.readouterr().out.splitlines()
    assert table[1:] == ["policy as served  1.00 ± 0.00", "random actions    0.00 ± 0.00"]
    assert row == f"| {home.name} | 3 | 1.00 ± 0.00 | 0.00 ± 0.00 |"


def test_export_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["export", "nowhere.zip", "--observation-names", "a,b"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("generate.py: ")
    assert "unexpected" not in captured.err
    assert generate.main(["export", "nowhere.zip", "--observation-names", "a,a"]) == 2
    assert "--observation-names: expected names" in capsys.readouterr().err


def test_export_to_onnx_takes_a_policy_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "right"
    source.mkdir()
    shutil.copy(POLICIES / "rllib_ppo_multiagent" / "checkpoint.zip", source)
    arguments = ["export", str(source), "--to", "onnx", "--output", str(target)]

    assert generate.main([*arguments, "--module", "right"]) == 0

    written = target / "policy.onnx"
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {written}",
        f"look into it:  python generate.py inspect {written}",
        f"draft its schema.yaml:  python generate.py schema {written}",
    ]
    signature = load_policy(target).signature
    assert (signature.module, signature.basis) == ("right", "metadata")


def test_export_to_onnx_leaves_the_served_folder_servable(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "examples" / "lpoc"
    for name in ("saved_model.zip", "schema.yaml"):
        shutil.copy(example / name, home)

    assert generate.main(["export", str(example), "--to", "onnx"]) == 0
    assert "wrote exports/lpoc/policy.onnx" in capsys.readouterr().out
    assert generate.main(["export", "saved_model.zip", "--to", "onnx"]) == 0
    assert generate.main(["inspect"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine", "--to=onnx", "--output=mine"], "mine: is the folder of the policy itself"),
        (["mine/run.zip", "--to=onnx", "--output=mine/"], "mine: is the folder of the policy"),
        ([".", "--to=onnx", "--output", "."], ".: is the folder of the policy itself"),
        (["mine/run.zip", "--output=mine"], "mine: is the folder of the policy itself"),
        (["mine", "--to=onnx", "--output=new"], "new/policy.onnx: would be a second policy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_export_writes_no_second_policy_to_a_folder(
    words: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "mine").mkdir()
    shutil.copy(POLICIES / "sb3_ppo_box" / "policy.zip", home / "mine" / "run.zip")
    shutil.copy(ROOT / "examples" / "lpoc" / "saved_model.zip", home)
    before = sorted(home.rglob("*"))

    assert generate.main(["export", *words]) == 1

    assert message in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before


def test_export_names_its_folder_after_the_policys(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mine").mkdir()
    shutil.copy(POLICIES / "sb3_ppo_box" / "policy.zip", home / "mine" / "run.zip")
    monkeypatch.chdir(home / "mine")

    assert generate.main(["export", ".", "--to", "onnx"]) == 0

    assert (home / "mine" / "exports" / "mine" / "policy.onnx").is_file()


def test_export_to_onnx_takes_statistics_of_another_name(tmp_path: Path) -> None:
    source, alone = POLICIES / "sb3_ppo_vecnorm", tmp_path / "alone"
    alone.mkdir()
    shutil.copy(source / "policy.zip", alone)
    statistics = shutil.copy(source / "vec_normalize.pkl", tmp_path / "other.pkl")
    arguments = ["export", str(alone / "policy.zip"), "--to", "onnx", "--output"]

    assert generate.main([*arguments, str(tmp_path / "without")]) == 1
    with_them = [*arguments, str(tmp_path / "with"), "--normalization", str(statistics)]
    assert generate.main(with_them) == 0

    policy = load_policy(tmp_path / "with")
    rows = raw_rows(cases_of(source.name))
    found = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    expected = [case["expected"]["deterministic_action"] for case in cases_of(source.name)]
    assert found.actions[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "torch"], "--to: expected savedmodel or onnx, got 'torch'"),
        (["--to", "onnx", "--action-names", "a"], "are for --to savedmodel"),
        (["--module", "left"], "--module: is for --to onnx"),
        (["--to", "onnx", "--normalization", "nowhere.pkl"], "nowhere.pkl: can't be read: No such"),
    ],
)
def test_export_names_options_that_do_not_fit(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = str(POLICIES / "sb3_ppo_box" / "policy.zip")

    assert generate.main(["export", policy, *options]) > 0

    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["schema.yaml"]


# The progress bar


class _Stream:
    """Standard error, as much of it as a bar needs."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.text = ""

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Do nothing: what is written is there."""


def test_a_terminal_gets_a_bar_that_goes_when_all_is_done() -> None:
    stream = _Stream(is_terminal=True)
    draw = progress_bar(stream)
    draw(1, 4)
    assert stream.text == f"\r[{'#' * 10}{'.' * 30}] 1 of 4"
    draw(4, 4)
    assert stream.text.endswith("\r\x1b[K")


def test_anything_else_gets_no_bar() -> None:
    stream = _Stream(is_terminal=False)
    progress_bar(stream)(1, 4)
    assert stream.text == ""


def test_example_is_named_from_anywhere_unless_a_folder_has_its_name(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lpoc = (ROOT / "examples" / "lpoc" / "schema.yaml").read_text()

    for name in ("lpoc", "examples/lpoc"):
        (home / "schema.yaml").unlink()
        assert generate.main(["copy_server_files", name]) == 0
        assert (home / "schema.yaml").read_text() == lpoc
    assert generate.main(["copy_server_files", "elsewhere/lpoc"]) == 1
    (home / "lpoc").mkdir()
    assert generate.main(["copy_server_files", "lpoc"]) == 1

    assert capsys.readouterr().err == (
        "generate.py: elsewhere/lpoc: not found; expected a folder with schema.yaml and a policy, "
        "such as saved_model.zip\n"
        "generate.py: lpoc: holds no schema.yaml and no policy; expected a folder with schema.yaml "
        "and a policy, such as saved_model.zip\n"
    )


@pytest.mark.parametrize(("line", "message"), WRONG_VALUES.items(), ids=WRONG_VALUES)
def test_value_out_of_range_is_a_wrong_usage_before_anybody_is_asked(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(shlex.split(line)) == 2

    assert capsys.readouterr().err.startswith(f"generate.py: {message}\n")
