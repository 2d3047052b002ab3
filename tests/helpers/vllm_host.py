"""A real vLLM server on a host of its own, with a token that only its clients are given."""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conftest import REPOSITORY
from hosts import Host, Running, end_all

PYTHON = Path(os.environ.get("POSTTRAIN_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))
PORT, START_SECONDS = 8000, 900


@dataclass
class VllmHost:
    """`src/serve.py` with these words on the host `server`; it is started by `start`, again where it is gone."""

    hosts: dict[str, Host]
    words: Sequence[object]
    log: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    process: Running | None = None

    @property
    def host(self) -> Host:
        return self.hosts["server"]

    @property
    def url(self) -> str:
        return f"http://{self.host.address}:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the server, and of who may use it."""
        return {"POSTTRAIN_SERVER_TOKEN": self.token}

    def start(self) -> None:
        """Return when the server answers a client."""
        if self.process is not None and self.process.poll() is None:
            return
        with self.log.open("a") as file:
            self.process = self.host.start(
                PYTHON, "src/serve.py", *self.words, "--allow_other_machines", stdout=file,
                environment=self.environment,
            )  # fmt: skip
        wait_until_up(self.url, self.hosts["client"], self.process, self.log)

    def end(self) -> None:
        end_all(self.host.namespace)


def wait_until_up(url: str, client: Host, server: Running, log: Path | None = None) -> None:
    """Return when `client` gets an answer; fails where the server ends before."""
    deadline = time.monotonic() + START_SECONDS
    waiting = client.start("sh", "-c", f"until curl --silent --fail {url}/health; do sleep 1; done")
    while waiting.poll() is None:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:] if log else url
        time.sleep(0.5)
