"""Versions of a running server's policies: deployed, promoted, rolled back, undeployed, shown."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from policy_server.commands.client import PolicyClient
from policy_server.commands.server_answers import AnswerObject
from policy_server.errors import ModelError, ServerAnswerError, SettingsError, UsageError
from policy_server.formats.finding import describe_others, format_of_folder, policy_at
from policy_server.formats.known_formats import expected_formats
from policy_server.formats.model_files import files_of_model, named_folder
from policy_server.formats.unpacking import format_of_file
from policy_server.settings import ENV_PREFIX, Settings

__all__ = [
    "admin_client",
    "as_json",
    "as_text",
    "check_evidence",
    "check_traffic",
    "deploy",
    "name_of",
    "promote",
    "roll_back",
    "status",
    "undeploy",
]

Progress = Callable[[int, int], None]
Status = AnswerObject

_PIECE_BYTES = 1024 * 1024
# Loading and proving a large policy takes minutes; the server has a limit of its own.
_TIMEOUT_S = 900.0
_ALL_TRAFFIC = 100
_BARS = "▁▂▃▄▅▆▇█"


def admin_client(url: str, key: str | None, settings: Settings) -> PolicyClient:
    """Return a client with the admin key.

    Args:
        url: where the server answers.
        key: the admin key; None takes the environment's.
        settings: the environment.

    Raises:
        SettingsError: if there is no key.
    """
    if key is None and settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
    if key is None:
        raise SettingsError(
            f"the admin key: is missing; give the server's {ENV_PREFIX}ADMIN_KEY here too, in the "
            "environment or with --key"
        )
    return PolicyClient(url, key, key_places=f"{ENV_PREFIX}ADMIN_KEY")


def check_traffic(traffic: float) -> None:
    """Refuse a share of the questions that no version can have.

    Args:
        traffic: the share, in per cent.

    Raises:
        UsageError: if it is not from 0 to 100.
    """
    if not 0 <= traffic <= _ALL_TRAFFIC:
        raise UsageError(f"--traffic: expected a number from 0 to {_ALL_TRAFFIC}, got {traffic}")


def check_evidence(after: int | None, max_disagreement: float | None) -> None:
    """Refuse evidence for a promotion that no server takes.

    Args:
        after: how many questions have to be compared first; None for none.
        max_disagreement: the largest share of them that may have another deterministic action;
            None for 0.

    Raises:
        UsageError: if one is out of its range, or the share is given without a number of questions.
    """
    if after is not None and after < 1:
        raise UsageError(f"--after: expected a whole number from 1, got {after}")
    if max_disagreement is not None and not 0 <= max_disagreement <= 1:
        raise UsageError(
            f"--max-disagreement: expected a number from 0 to 1, got {max_disagreement}"
        )
    if max_disagreement is not None and after is None:
        raise UsageError("--max-disagreement: say by --after how many questions are compared first")


def name_of(server: PolicyClient, policy: str | None) -> str:
    """Return the name of the policy that is meant.

    Args:
        server: the server.
        policy: the name; None for the server's default policy.

    Raises:
        ServerAnswerError: if the server can't be reached or refuses, in words.
    """
    if policy is not None:
        return policy
    return str(server.get("/admin/policies")["default"])


def deploy(
    server: PolicyClient,
    policy: str,
    path: str,
    settings: Settings,
    *,
    version: str | None,
    traffic: float,
    is_shadow: bool,
    on_progress: Progress,
) -> Status:
    """Deploy a version; return when it is live, or raise what is wrong with it.

    Args:
        server: the server.
        policy: the policy's name.
        path: a policy's zip, file or folder; a folder with a policy and its schema.yaml; or an
            address.
        settings: how much a zip may unpack to.
        version: the new version's name; None leaves that to the server.
        traffic: its share of the questions, in per cent.
        is_shadow: whether it gets copies of questions, and answers nobody.
        on_progress: is called with the bytes sent, and all.

    Returns:
        The versions as they are then.

    Raises:
        ModelError: if there is no policy at the path.
        ServerAnswerError: if the server refuses, in words.
    """
    params = {"traffic": repr(traffic), "shadow": str(is_shadow).lower()}
    if version is not None:
        params["version"] = version
    route = f"{_route(policy)}/versions"
    known: Status
    if "://" in path:
        body = json.dumps({"model": path}).encode()
        known = server.request("POST", route, data=body, params=params, timeout_s=_TIMEOUT_S)
    else:
        with _packed(Path(path), settings) as archive:
            known = server.request(
                "POST",
                route,
                data=_pieces(archive, on_progress),
                params=params,
                content_type="application/zip",
                timeout_s=_TIMEOUT_S,
            )
    return known


def promote(
    server: PolicyClient,
    policy: str,
    *,
    version: str | None,
    after: int | None,
    max_disagreement: float | None,
) -> Status:
    """Give all questions to a version, at once or when the evidence is there.

    Args:
        server: the server.
        policy: the policy's name.
        version: the version's name; None for the only candidate.
        after: how many questions have to be compared first; None for none.
        max_disagreement: the largest share of them that may have another deterministic action;
            None for 0.

    Returns:
        The versions as they are then.

    Raises:
        ServerAnswerError: if the server refuses, in words.
    """
    params = {} if version is None else {"version": version}
    if after is not None:
        params["after"] = str(after)
    if max_disagreement is not None:
        params["max_disagreement"] = repr(max_disagreement)
    known: Status = server.request("POST", f"{_route(policy)}/promote", params=params)
    return known


def roll_back(server: PolicyClient, policy: str) -> Status:
    """Take the candidates back; without any, make the former version live again.

    Args:
        server: the server.
        policy: the policy's name.

    Returns:
        The versions as they are then.

    Raises:
        ServerAnswerError: if the server refuses, in words.
    """
    known: Status = server.request("POST", f"{_route(policy)}/rollback")
    return known


def undeploy(server: PolicyClient, policy: str, version: str) -> Status:
    """Unload a version.

    Args:
        server: the server.
        policy: the policy's name.
        version: the version's name.

    Returns:
        The versions as they are then.

    Raises:
        ServerAnswerError: if the server refuses, in words.
    """
    known: Status = server.request("DELETE", f"{_route(policy)}/versions/{quote(version, safe='')}")
    return known


def status(server: PolicyClient, policy: str) -> Status:
    """Return the versions of a policy.

    Args:
        server: the server.
        policy: the policy's name.

    Raises:
        ServerAnswerError: if the server refuses, in words.
    """
    known: Status = server.get(_route(policy))
    return known


def as_json(known: Status) -> str:
    """Return the versions of a policy as one JSON object.

    Args:
        known: what `status` returns.
    """
    return json.dumps(known, ensure_ascii=False)


def as_text(known: Status) -> list[str]:
    """Return the versions of a policy as lines of a table.

    Args:
        known: what `status` returns.

    Raises:
        ServerAnswerError: if it is the answer of another server, or of another version of this one.
    """
    try:
        return list(_lines(known))
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ServerAnswerError(
            f"{known.where}: the answer holds no versions of a policy as this program knows them; "
            "is it a Policy Server of this version that listens there?"
        ) from error


def _lines(known: Status) -> Iterator[str]:
    rows = [("version", "state", "traffic", "agreement", "")]
    for version in known["versions"]:
        name = version["name"]
        role = {known["live"]: "live", known["former"]: "former"}.get(name, version["state"])
        rows.append((name, role, f"{version['traffic']:g} %", *_agreement(version["agreement"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    waiting = known["waiting_for"]
    if waiting is not None:
        yield (
            f"{waiting['version']} is promoted after {waiting['after']} questions, if at most "
            f"{waiting['max_disagreement']:.2%} of them have another action"
        )
    if known["reason"]:
        yield f"{known['reason']}"
    yield from (
        f"{version['name']} could not be loaded: {version['reason']}"
        for version in known["versions"]
        if version["reason"]
    )


def _agreement(report: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a shadow's agreement in words, and its course as a row of bars."""
    if report is None:
        return "", ""
    if report["same_mode"] is None:
        words = "nothing compared yet"
    else:
        words = (
            f"{report['same_mode']:.2%} of {report['copies']} the same action, distance "
            f"{report['mean_distance']:.4f}, {report['call_seconds'] * 1000:.2f} ms a call"
        )
    if report["failed"]:
        words += f", {report['failed']} failed: {report['reason']}"
    bars = (_BARS[round(share * (len(_BARS) - 1))] for share in report["course"])
    return words, "".join(bars)


def _route(policy: str) -> str:
    return f"/admin/policies/{quote(policy, safe='')}"


@contextmanager
def _packed(path: Path, settings: Settings) -> Iterator[Path]:
    """Give a zip of a policy's file or folder, with what belongs to it."""
    files = _files_of(path, settings)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "version.zip"
        # Zip's years are 1980 to 2107; reproducible builds date their files to 1970.
        with zipfile.ZipFile(archive, "w", strict_timestamps=False) as packed:
            for name, file in files.items():
                packed.write(file, name)
        yield archive


def _files_of(path: Path, settings: Settings) -> Mapping[str, Path]:
    """Return the files to send, by their names in the version's folder."""
    schema = path / settings.schema_path.name
    policy = policy_at(path, settings) if path.is_dir() else path
    if policy is None or not (policy.is_file() or policy.is_dir()):
        others = describe_others(settings.model_copy(update={"home": path}))
        what = "holds no policy" if path.is_dir() else "not found"
        raise ModelError(
            others or f"{named_folder(path)}: {what}; expected {expected_formats()}, or its zip"
        )
    if policy.is_dir():
        inside = {f"policy/{name}": file for name, file in files_of_model(policy).items()}
        form = format_of_folder(policy)
    else:
        inside = {policy.name: policy}
        form = format_of_file(policy, max_bytes=settings.max_unpacked_bytes)
    beside = () if form is None else form.beside(policy.name)
    found = {name: policy.parent / name for name in beside}
    known = {name: file for name, file in found.items() if file.is_file()}
    if path.is_dir() and policy != path and schema.is_file():
        known[schema.name] = schema
    return {**inside, **known}


def _pieces(archive: Path, on_progress: Progress) -> Iterator[bytes]:
    """Yield the pieces of an archive as they are sent."""
    total, sent = archive.stat().st_size, 0
    with archive.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
            sent += len(piece)
            on_progress(sent, total)
