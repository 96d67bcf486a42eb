"""A server that the page starts: prepared from two files, started as a user would, stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from demo.server_keeper import LOG_FILE, STATUS_FILE, started_keeper, tell_to_serve
from policy_server.commands.served_files import copy_server_files
from policy_server.errors import PolicyServerError
from policy_server.formats.finding import has_policy
from policy_server.schema import read_schema_file
from policy_server.settings import ENV_PREFIX, read_settings

__all__ = ["Backend", "ServerProcess", "ServerSlot", "has_served_policy"]

Backend = Literal["local", "ray"]

_LOG_BYTES = 20_000


class ServerProcess:
    """`uvicorn app:app` with a policy of its own, on a free port of this machine."""

    def __init__(self, source: Path, *, backend: Backend, replace_served_policy: bool) -> None:
        """Own a server and its files, until `stop` or the end of this process; it is not ready yet.

        Args:
            source: folder with schema.yaml and a policy.
            backend: `local` or `ray`.
            replace_served_policy: prepare the policy where `uvicorn app:app` looks for it, in place
                of the one there, and not in a folder that goes with the server.

        Raises:
            PolicyServerError: if the files are refused.
        """
        settings = read_settings()
        self._scratch = Path(tempfile.mkdtemp(prefix="policy-server-"))
        self._home = self._scratch / "home"
        self._stopping = threading.Lock()
        self._keeper = started_keeper(self._scratch)
        try:
            home = settings.home if replace_served_policy else self._home
            settings = settings.model_copy(update={"home": home.resolve()})
            # The server is started for this page, so that a key may be made up for it.
            copy_server_files(source, settings.model_copy(update={"allow_anonymous": True}))
            schema = read_schema_file(settings.schema_path)
            key = settings.api_key.get_secret_value() if settings.api_key else schema.api_key
            self.api_key = key or secrets.token_urlsafe(18)
            self.backend = backend
            self.url = f"http://127.0.0.1:{_free_port()}"
            self._log = self._scratch / LOG_FILE
            self._start(settings.home)
        except BaseException as error:
            self.stop()
            if isinstance(error, PolicyServerError):
                raise type(error)(_without_folders(error.message, source, self._home)) from error
            raise
        self._started_at = time.monotonic()

    def _start(self, home: Path) -> None:
        variables = {
            "HOME": str(home),
            "BACKEND": self.backend,
            "API_KEY": self.api_key,
            "METRICS_PORT": "0",
            "DASHBOARD_PORT": "0",
            "LOG_FORMAT": "text",
            # The policy chosen on the page counts, not one that the environment would fetch.
            "MODEL_URI": "",
            "SCHEMA_URI": "",
        }
        environment = os.environ | {ENV_PREFIX + name: text for name, text in variables.items()}
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", self.url.split(":")[-1]]
        tell_to_serve(self._keeper, command, environment)

    @property
    def age_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started_at

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of the server; None while it runs."""
        try:
            return int((self._scratch / STATUS_FILE).read_text())
        except FileNotFoundError:
            return self._keeper.poll()

    def log_tail(self, lines: int) -> str:
        """Return the last lines that the server has printed.

        Args:
            lines: how many lines at most.
        """
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._log.stat().st_size - _LOG_BYTES, 0))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return _without_folders("\n".join(text.splitlines()[-lines:]), self._home)

    def stop(self) -> None:
        """End the server as an operator would, and remove its files; harmless when repeated."""
        with self._stopping:
            assert self._keeper.stdin is not None, "it is a pipe"
            with suppress(BrokenPipeError):
                self._keeper.stdin.close()
            self._keeper.wait()
            # A killed keeper has left them.
            shutil.rmtree(self._scratch, ignore_errors=True)


def has_served_policy() -> bool:
    """Return whether `uvicorn app:app` would have a policy, which the page's could replace.

    True also where that can't be told: the start then gives the reason.
    """
    try:
        return has_policy(read_settings())
    except PolicyServerError:
        return True


def _without_folders(text: str, *folders: Path) -> str:
    """Return a text in which files of temporary folders are named without their folder."""
    for folder in folders:
        for name in (folder.resolve(), folder):
            text = text.replace(f"{name}{os.sep}", "").replace(f"{name}: ", "")
    return text


class ServerSlot:
    """The place of the one server of a browser session, as long as the session lasts."""

    def __init__(self) -> None:
        self.server: ServerProcess | None = None

    def stop(self) -> None:
        """Stop the server, and wait until it has ended."""
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    def release(self) -> None:
        """Stop the server without waiting: one that still starts takes a while to end."""
        server, self.server = self.server, None
        if server is not None:
            threading.Thread(target=server.stop).start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
