"""Client libraries as their users have them: downloaded, installed by their README, and run.

What is missing on this machine fails the test: a library that nobody compiled is no library.
"""

from __future__ import annotations

import ast
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature, StateTensor
from policy_server.schema import AgentPolicies, parse_schema
from policy_server.sdk import Sdk, files_of, prepare_document
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support import asking
from tests.support.fakes import FakeBackend, components_of, signature_of, slot_of
from tests.support.lost_answers import LosingProxy, losing_proxy
from tests.support.processes import program, run
from tests.support.server_processes import KEY, compiled_home_of, running_server
from tests.support.servers import served_app
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]

LOCAL = {"POLICY_SERVER_BACKEND": "local"}
# What the Debian package libjakarta-annotation-api-java installs; Jackson is in the generator.
ANNOTATIONS = Path("/usr/share/java/jakarta-annotation-api.jar")
# An action with a number and a vector, behind a prefix, with names that languages reserve or spell
# alike.
_NAMES = (
    *("_id", "class", "hasUp", "T", "t", "a_b", "aB", "a__b", "true", "if", "from", "self", "type"),
    *("object", "default", "nil", "fun", "val", "None", "copy", "toJSON", "com", "this", "print"),
)
MIXED = f"""
observations:
{"".join(f'  "{name}": {{type: int, example: {i}}}' + chr(10) for i, name in enumerate(_NAMES))}
  up: {{type: bool, example: true}}
  in: {{type: "List[float]", min_items: 1, max_items: 1, example: [0.5]}}
  self_value: {{type: float, example: -1.5}}
  grid: {{type: "List[int]", shape: [2, 1], example: [[3], [4]]}}
parameters: {{api_key: {KEY}, url_path: app/v1}}
"""
WIDTH = len(_NAMES) + 5
# The logarithm of a standard deviation at which a draw, rounded, is the mean.
_NARROW = -4.0
# What a program of tests/data/sdk_sessions prints.
PROGRAMS = Path(__file__).parents[1] / "data/sdk_sessions"
_SESSIONS = [
    *("begun 1099511627776 0", "step 0", "step 1", "again true 1", "shown 2", "other 409"),
    *("ahead 409", "reset 1099511627776 0 next", "steps 1 2", "ended 404", "unseeded true"),
    *("token 0", "token 1", "token 2", "changed 422"),
]
_TEAM = [
    *("plain a 0 b 0", "step a 0 b 0", "step a 1 b 1", "again true", "reset a"),
    *("step a 2 b 0", "shown 3", "ended 404"),
]
# What a 503 of `/clients` gives as Retry-After.
PAUSE_S = 5


@dataclass(frozen=True)
class Served:
    """A server, the SDKs that it gave, and what an example prints for an action.

    Attributes:
        folder: has a folder for each language.
        url: where a client reaches the server.
        action: an action, with every number as 0.
        proxy: loses answers between the examples and a policy with a memory; None where the policy
            has none.
    """

    folder: Path
    url: str
    action: list[object]
    proxy: LosingProxy | None = None

    def run(self, *command: str | Path, folder: Path, **variables: str) -> str:
        """Run what a user would type; it finds the server and the key."""
        own = {"POLICY_SERVER_URL": self.url, "POLICY_SERVER_API_KEY": KEY, "WIDTH": str(WIDTH)}
        known = {**os.environ, **own, **variables}
        return run("nice", *command, folder=folder, environment=known).stdout

    def run_example(self, *command: str | Path, folder: Path, **variables: str) -> None:
        """Run a README's example, and hold what it prints against the policy's actions.

        Of a policy with a memory it asks for three actions of an episode, by way of a proxy that
        loses the first answer to each.
        """
        if self.proxy is None:
            self._assert_printed(self.run(*command, folder=folder, **variables), steps=1)
            return
        before = len(self.proxy.lost)
        url = self.proxy.url + httpx.URL(self.url).path
        output = self.run(*command, folder=folder, POLICY_SERVER_URL=url, **variables)
        counts = self._assert_printed(output, steps=3)
        assert [step for _, step in self.proxy.lost[before:]] == ["0", "1", "2"]
        assert counts == [0, 1, 2]

    def _assert_printed(self, output: str, *, steps: int) -> list[int]:
        """Hold the numbers of actions and probabilities; return the last number of each action."""
        # R prints the index of a line's first number before it.
        text = re.sub(r"(?m)^ *\[\d+\] ", "", output)
        numbers = [float(number) for number in re.findall(r"-?\d[\d.]*(?:[eE][-+]?\d+)?", text)]
        width = len(re.findall("0(?:[.]0)?", str(self.action))) + 1
        assert len(numbers) == steps * width, output
        rows = [numbers[i : i + width] for i in range(0, len(numbers), width)]
        assert all(row[-1] > 0 for row in rows), output
        return [round(row[-2]) for row in rows]

    def example(self, language: str, fence: str, name: str) -> Path:
        """Write the README's example to a file, and return the SDK's folder."""
        folder = self.folder / language
        found = re.search(rf"```{fence}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert found is not None
        (folder / name).write_text(found[1])
        return folder

    def run_sessions(self, *command: str | Path, folder: Path, **variables: str) -> None:
        """Run a program of tests/data/sdk_sessions where the policy has a memory."""
        self._run_program(_SESSIONS, *command, folder=folder, **variables)

    def run_team(self, *command: str | Path, folder: Path) -> None:
        """Run a program of tests/data/sdk_sessions about a team where the policy has a memory."""
        self._run_program(_TEAM, *command, folder=folder)

    def _run_program(
        self, prints: list[str], *command: str | Path, folder: Path, **variables: str
    ) -> None:
        if self.proxy is not None:
            output = self.run(*command, folder=folder, **variables)
            assert [line.rstrip().lower() for line in output.splitlines()] == prints


def _shape(value: object) -> object:
    return [_shape(item) for item in value] if isinstance(value, list) else type(value)()


@dataclass(frozen=True)
class CountingPolicy:
    """A policy whose memory is the number of the episode's steps: the mean of its vector.

    Attributes:
        signature: what the policy says of itself.
    """

    signature: PolicySignature

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer one step of each row's episode."""
        rows = len(inputs)
        before = np.zeros((rows, 1), np.float32) if inputs.state is None else inputs.state
        values = np.zeros((rows, 6), np.float32)
        values[:, 2:4], values[:, 4:] = before, _NARROW
        outputs = ActionDistribution(self.signature.components or ()).answer(
            values,
            is_deterministic=inputs.is_deterministic,
            seeds=inputs.seeds,
            wants_distribution=inputs.wants_distribution,
        )
        return replace(outputs, state=None if inputs.state is None else before + 1)

    def seconds_for(self, rows: int) -> float:
        """Return that a call is short."""
        return rows * 1e-9


@contextmanager
def mixed_server(home: Path) -> Iterator[str]:
    signature = replace(
        signature_of(components_of(("categorical", 2), ("normal", 2)), width=WIDTH),
        memory=(StateTensor("steps", (1,)),),
    )
    backend = FakeBackend(signature, (), policy=CountingPolicy(signature))
    schema = parse_schema(MIXED)
    registry = PolicyRegistry([slot_of(backend, schema)], agents=AgentPolicies({"*": "default"}))
    app = create_app(
        registry,
        Settings(home=home),
        api_key=schema.api_key,
        root_path=schema.root_path,
    )
    with served_app(app, ws="none") as port:
        yield f"http://127.0.0.1:{port}/app/v1"


def fetch(url: str, route: str) -> httpx.Response:
    """Download a zip as the 503's Retry-After says."""

    def answer() -> httpx.Response | None:
        response = asking.get(url + route, headers={"access-token": KEY}, timeout=60)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert int(response.headers["retry-after"]) == PAUSE_S
            return None
        assert response.status_code == httpx.codes.OK, response.text
        return response

    found = wait_until(answer, timeout_s=600, pause_s=PAUSE_S)
    assert found is not None
    return found


def unpack(content: bytes, folder: Path) -> None:
    for path, text in files_of(content).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)


@pytest.fixture(scope="module", params=["tuple of integers", "number and vector"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sdks")
    if request.param == "tuple of integers":
        home = compiled_home_of("ppo_tuple", folder / "home")
        with running_server(home, environment=LOCAL) as server:
            yield _download(server.url, folder, [0] * 12)
    else:
        with mixed_server(folder) as url, losing_proxy(httpx.URL(url).copy_with(path="/")) as proxy:
            yield replace(_download(url, folder, [0, [0.0, 0.0]]), proxy=proxy)


def _download(url: str, folder: Path, action: list[object]) -> Served:
    unpack(fetch(url, "/clients").content, folder)
    for name in ("typescript", "go"):
        unpack(fetch(url, f"/clients/{name}").content, folder)
    return Served(folder, url, action)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment of nothing, not even pip: that of the tests installs into it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin"


def test_python_sdk_is_installed_and_gets_an_action(served: Served, environment: Path) -> None:
    folder = served.example("python", "python", "example.py")

    python = environment / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    served.run(*pip, "install", ".", folder=folder)

    served.run_example(python, "example.py", folder=folder)
    served.run_sessions(python, PROGRAMS / "session.py", folder=folder)
    served.run_team(python, PROGRAMS / "team.py", folder=folder)
    text = re.sub(r"(?ms)^with .*", "", (folder / "example.py").read_text())
    (folder / "batch.py").write_text(
        "from policy_client import PolicyApi\n"
        + text
        + "with ApiClient(configuration) as client:\n"
        "    answer = PolicyApi(client).predict_batch([observation] * 3)\n"
        "    print(answer.actions, answer.probability)\n"
    )
    actions, _, chances = served.run(python, "batch.py", folder=folder).rpartition("[")
    assert _shape(ast.literal_eval(actions.strip())) == [served.action] * 3
    assert len(ast.literal_eval(f"[{chances}")) == 3


def test_java_sdk_is_compiled_and_gets_an_action(served: Served) -> None:
    javac, java = (program(name, package="default-jdk-headless") for name in ("javac", "java"))
    assert ANNOTATIONS.exists(), "apt-get install libjakarta-annotation-api-java"
    jar = importlib.resources.files("openapi_generator_cli") / "openapi-generator.jar"
    folder = served.example("java", "java", "Example.java")
    sources = sorted(map(str, (folder / "src").rglob("*.java")))
    path = f"{jar}:{ANNOTATIONS}"

    programs = ["Sessions.java", "Team.java"] if served.proxy is not None else []
    whole: list[str | Path] = [*sources, "Example.java", *(PROGRAMS / name for name in programs)]

    # A compiler that runs once is done before its own code would be worth optimizing.
    quick = ("-proc:none", "-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC")
    served.run(javac, *quick, "-d", "out", "-cp", path, *whole, folder=folder)

    served.run_example(java, "-cp", f"out:{path}", "Example", folder=folder)
    served.run_sessions(java, "-cp", f"out:{path}", "Sessions", folder=folder)
    served.run_team(java, "-cp", f"out:{path}", "Team", folder=folder)


@pytest.fixture(scope="module")
def r_packages(served: Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Install the R SDK in a folder of its own, without the byte code that only saves time."""
    folder = tmp_path_factory.mktemp("r")
    r = program(
        "R",
        package="r-base-core r-cran-base64enc r-cran-httr2 r-cran-jsonlite r-cran-r6 "
        "r-cran-stringr",
    )
    quick = ("--no-test-load", "--no-byte-compile")
    served.run(r, "CMD", "INSTALL", *quick, f"--library={folder}", ".", folder=served.folder / "r")
    return str(folder)


def test_r_sdk_is_installed_and_gets_an_action(served: Served, r_packages: str) -> None:
    folder = served.example("r", "r", "example.R")

    served.run_example("Rscript", "example.R", folder=folder, R_LIBS=r_packages)
    served.run_sessions("Rscript", PROGRAMS / "sessions.R", folder=folder, R_LIBS=r_packages)


def test_r_sdk_sends_lists_as_lists_and_stops_on_an_error(served: Served, r_packages: str) -> None:
    folder = served.example("r", "r", "example.R")
    text = (folder / "example.R").read_text()
    # Of lists in lists, the innermost: R has no vectors of vectors.
    vectors = re.split("(?m)^(?:answer|sessions) <-", re.sub(r"list\(([^()]*)\)", r"c(\1)", text))[
        0
    ]
    (folder / "lists.R").write_text(
        vectors + "policy <- PolicyApi$new(client)\ncat(observation$toJSONString())\n"
        "cat('', class(policy$Predict(observation)$actions))\n"
        "policy$api_client$api_keys <- c('access-token' = 'wrong')\n"
        "tryCatch(policy$Predict(observation), error = function(e) cat('', conditionMessage(e)))\n"
    )

    output = served.run("Rscript", "lists.R", folder=folder, R_LIBS=r_packages)

    sent, kind, error = output.split(" ", 2)
    assert asking.post(
        served.url + "/predict", content=sent, headers={"access-token": KEY}
    ).is_success
    assert kind == "list"
    assert error.startswith('401 {"detail":')


def test_typescript_sdk_is_compiled_and_gets_an_action(served: Served, tmp_path: Path) -> None:
    npm, node = program("npm", package="npm"), program("node", package="nodejs")
    folder = served.example("typescript", "typescript", "example.mjs")
    quiet = ("--no-audit", "--no-fund")

    served.run(npm, "install", *quiet, folder=folder)
    (folder / "example.mjs").rename(tmp_path / "example.mjs")
    # Without its scripts, which would compile the same files again.
    served.run(npm, "install", *quiet, "--ignore-scripts", folder, folder=tmp_path)

    served.run_example(node, "example.mjs", folder=tmp_path)
    # Node looks for packages beside the program.
    for name in ("sessions.mjs", "team.mjs"):
        shutil.copy(PROGRAMS / name, tmp_path)
    served.run_sessions(node, "sessions.mjs", folder=tmp_path)
    served.run_team(node, "team.mjs", folder=tmp_path)


@pytest.fixture(scope="module")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a folder for what Go compiles of its standard library, which all SDKs need."""
    return str(tmp_path_factory.mktemp("go"))


def test_go_sdk_is_compiled_and_gets_an_action(
    served: Served, tmp_path: Path, go_cache: str
) -> None:
    go = program("go", package="golang-go")
    folder = served.example("go", "go", "example.go")
    (folder / "example.go").rename(tmp_path / "example.go")
    # It states a newer Go than Debian 12 has, and uses nothing of it.
    module = (folder / "go.mod").read_text()
    (folder / "go.mod").write_text(re.sub(r"(?m)^go .*$", "go 1.19", module))
    offline = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOCACHE": go_cache}

    served.run(go, "mod", "init", "example", folder=tmp_path, **offline)
    required = ("-require=policyclient@v0.0.0", f"-replace=policyclient={folder}")
    served.run(go, "mod", "edit", *required, folder=tmp_path, **offline)

    served.run_example(go, "run", "example.go", folder=tmp_path, **offline)
    if served.proxy is None:
        text, changed = re.subn(r"10 ?\* ?time", "4*time", (tmp_path / "example.go").read_text())
        assert changed == 1
        (tmp_path / "example.go").write_text(text)
        url = httpx.URL(served.url)
        # Two attempts take longer than the time of one.
        with losing_proxy(url, times=2, after_s=2.5) as proxy:
            slow = {**offline, "POLICY_SERVER_URL": proxy.url}
            served.run_example(go, "run", "example.go", folder=tmp_path, **slow)
        assert len(proxy.lost) == 2
    served.run_sessions(go, "run", PROGRAMS / "sessions.go", folder=tmp_path, **offline)


def test_two_starts_of_the_same_policy_have_the_same_sdk(tmp_path: Path) -> None:
    home = compiled_home_of("ppo_tuple", tmp_path)
    keys = set()

    for _ in range(2):
        with running_server(home, environment=LOCAL) as server, server.client() as client:
            document = prepare_document(client.get("/openapi.json").json(), url="http://localhost")
            keys.add(Sdk.of(document, ["go"]).key)

    assert len(keys) == 1


@pytest.mark.parametrize("served", ["tuple of integers"], indirect=True, scope="module")
def test_predictions_go_on_while_an_sdk_is_generated(served: Served) -> None:
    with asking.client(base_url=served.url, headers={"access-token": KEY}, timeout=60) as client:
        example = client.get("/openapi.json").json()["components"]["schemas"]["Observation"]
        answers = 0

        def ask() -> bool:
            nonlocal answers
            assert client.post("/predict", json=example["examples"][0]).status_code == 200
            answers += 1
            return generated.done()

        with ThreadPoolExecutor(1) as executor:
            generated = executor.submit(fetch, served.url, "/clients/kotlin")
            # The generator has the lowest priority: without the pauses it would hardly ever run.
            wait_until(ask, timeout_s=600)
        generated.result()

    assert answers >= 10
