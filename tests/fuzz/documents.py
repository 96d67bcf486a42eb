"""Requests that OpenAPI documents allow and forbid, made by schemathesis with all checks.

No 5xx, no status or answer that the document does not have, nothing refused that it allows, nothing
taken that it forbids.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import schemathesis
import yaml
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from policy_server import create_app
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.serving.state_tokens import NEW_EPISODE
from policy_server.web.openapi_headers import STATE_PATTERN
from policy_server.web.request_timing import LONGEST_TIMEOUT_MS, TIMEOUT_HEADER
from tests.support import asking
from tests.support.folders import ROOT
from tests.support.servers import served_app

__all__ = ["HOMES", "ask_all", "ask_documented"]

_KEY = "a-key-of-this-run"
_TOKEN, _VERSION, _UNKNOWN = "x-state", "x-policy-version", "x-schemathesis-unknown-property"
_SELDOM = 16
# Milliseconds that a request may ask for, up to an hour's.
_DEADLINE = re.compile(r"[1-9][0-9]{0,5}|[12][0-9]{6}")
# Client libraries are built by Java, for minutes each.
_SLOW = ("/clients", "/clients/{language}")
_METHODS = frozenset({"get", "post", "put", "patch", "delete", "head", "options"})
_EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/schema.yaml"))
HOMES = [*_EXAMPLES, "several"]


def _filter_case(_context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Return whether a case's headers are such that the document decides about them.

    HTTP allows any header, and JSON Schema can't say that a token is signed by this server.
    """
    headers = {name.lower(): str(value) for name, value in dict(case.headers or {}).items()}
    token = headers.get(_TOKEN, NEW_EPISODE)
    return _UNKNOWN not in headers and (
        token == NEW_EPISODE or re.search(STATE_PATTERN, token) is None
    )


def _map_case(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any]
) -> schemathesis.Case[Any]:
    """Return a case of which the answer tells something.

    It seldom asks for a version: one that is made up is 409, whatever else. A deadline that a
    request may have is a long one: the shortest, which the document's bounds offer, is mostly 504.
    """
    headers = dict(case.headers or {})
    if _VERSION in headers and crc32(str(headers[_VERSION]).encode()) % _SELDOM:
        del case.headers[_VERSION]
    if _DEADLINE.fullmatch(str(headers.get(TIMEOUT_HEADER, ""))):
        case.headers[TIMEOUT_HEADER] = str(LONGEST_TIMEOUT_MS)
    return case


def ask_all(cases: int, seed: int) -> Counter[str]:
    """Ask the server of every home, each in a process of its own, as many at once as CPUs.

    Args:
        cases: see `ask_documented`.
        seed: of the draws.

    Returns:
        How many requests were answered with each status.
    """
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        asked = {pool.submit(_ask_one, cases, seed, name): name for name in HOMES}
        for done in as_completed(asked):
            try:
                found = done.result()
            except AssertionError as error:
                faults.append(str(error))
                told = str(error)
            else:
                statuses.update(found)
                told = f"{asked[done]}: {found.total()} requests"
            print(told, flush=True)  # noqa: T201 -- a command
    assert not faults, "\n\n".join(faults)
    return statuses


def _ask_one(cases: int, seed: int, name: str) -> Counter[str]:
    logging.disable(logging.WARNING)
    return ask_documented(cases, seed, homes=[name])


def ask_documented(
    cases: int,
    seed: int,
    *,
    homes: Sequence[str] = HOMES,
    phases: str = "",
    paths: Sequence[str] = (),
) -> Counter[str]:
    """Ask the server of each home, an example or several of them in one server.

    Args:
        cases: the least that is drawn for each server, spread over its operations; the phases that
            draw nothing come on top.
        seed: of the draws.
        homes: some of `HOMES`.
        phases: of schemathesis, with commas; empty for all.
        paths: of the operations; none for all.

    Returns:
        How many requests were answered with each status.
    """
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    for name in homes:
        with TemporaryDirectory(prefix="documented-") as folder:
            home = _home(name, Path(folder) / "home")
            app = create_app(home, api_key=_KEY)
            with served_app(app, http=HttpProtocol) as port:
                url = f"http://127.0.0.1:{port}{_prefix(home)}"
                each = math.ceil(cases / _operations(url, paths))
                found, wrong = _asked(_document(url, each, seed, phases), paths)
        statuses.update(found)
        faults.extend(f"{name}: {fault}" for fault in wrong)
    assert not faults, "\n\n".join(faults)
    return statuses


def _home(name: str, folder: Path) -> Path:
    if name != "several":
        shutil.copytree(ROOT / "examples" / name, folder)
        return folder
    folder.mkdir()
    policies: dict[str, Any] = {}
    for example in ("lpoc", "pendulum", "stock", "conveyor"):
        model = shutil.copyfile(
            ROOT / "examples" / example / "saved_model.zip", folder / f"{example}.zip"
        )
        found = yaml.safe_load((ROOT / "examples" / example / "schema.yaml").read_text())
        parameters = {k: v for k, v in found["parameters"].items() if k in {"discrete", "tuple"}}
        policies[example] = {**found, "parameters": parameters, "model": model.name}
    policies["lpoc"] = {
        **{key: item for key, item in policies["lpoc"].items() if key != "model"},
        "versions": {"old": {"model": "lpoc.zip", "traffic": 60}, "new": {"model": "lpoc.zip"}},
    }
    team = {"belt_*": "conveyor", "robot": "pendulum"}
    whole = {"policies": policies, "multi_agent": team, "parameters": {"url_path": "app/v1"}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return folder


def _operations(url: str, paths: Sequence[str]) -> int:
    """Return how many operations a server's document has, of those that are asked."""
    found: dict[str, Any] = asking.get(f"{url}/openapi.json", timeout=60).json()["paths"]
    return sum(
        len(_METHODS & item.keys())
        for path, item in found.items()
        if path not in _SLOW and (not paths or path in paths)
    )


def _prefix(home: Path) -> str:
    path = (yaml.safe_load((home / "schema.yaml").read_text()).get("parameters") or {}).get(
        "url_path", ""
    )
    return f"/{path}".rstrip("/")


def _document(url: str, cases: int, seed: int, phases: str) -> Any:  # noqa: ANN401 -- schemathesis' own
    chosen = phases.split(",") if phases else ["examples", "coverage", "fuzzing", "stateful"]
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"access-token": _KEY},
            "continue-on-failure": True,
            "request-timeout": 30,
            # The document has 501 where a policy can give no such answer.
            "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "501"]}},
            "generation": {
                "max-examples": cases,
                "database": "none",
                "no-shrink": cases > 100,
                # A wrong key beside the right one is no key that the document forbids.
                "with-security-parameters": False,
            },
            "phases": {
                name: {"enabled": name in chosen}
                for name in ("examples", "coverage", "fuzzing", "stateful")
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    schema.hook("filter_case")(_filter_case)
    schema.hook("map_case")(_map_case)
    asked = schema.exclude(path=list(_SLOW))
    if any(path.startswith("/policies/") for path in schema.raw_schema["paths"]):
        # It would look for a session that it deleted at the other one of its two addresses.
        return asked.exclude(method="DELETE", path_regex=r"/sessions/\{session_id\}$")
    return asked


def _asked(schema: Any, paths: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:  # noqa: ANN401 -- schemathesis' own
    if paths:
        schema = schema.include(path=list(paths))
    statuses: Counter[str] = Counter()
    faults: dict[str, str] = {}
    for event in from_schema(schema).execute():
        if isinstance(event, FatalError):
            raise event.exception
        if isinstance(event, NonFatalError):
            faults[f"{event.label} {type(event.value).__name__}"] = str(event.value)
        elif isinstance(event, ScenarioFinished):
            for asked in event.recorder.interactions.values():
                statuses[str(asked.response.status_code if asked.response else "none")] += 1
            faults.update(_faults_of(event.recorder))
    return statuses, [f"{name}: {told}" for name, told in faults.items()]


def _faults_of(recorder: Any) -> dict[str, str]:  # noqa: ANN401 -- schemathesis' own
    """Return the checks that failed, each once an operation."""
    found = {}
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                name = f"{failure.operation} {check.name}: {failure.title}"
                found[name] = f"{failure.message[:1500]}\n{check.failure_info.code_sample[:1500]}"
    return found
