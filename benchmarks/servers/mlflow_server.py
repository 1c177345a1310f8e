"""Run a real MLflow server that can be killed and started again on the same port and store."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


class MlflowServer:
    """`options` are those of `mlflow server`; `store` and `artifacts` are URIs, by default below `folder`."""

    def __init__(
        self, folder: Path, *options: str, store: str = "", artifacts: str = "", environment: Mapping[str, str] | None = None
    ):
        self.folder, self._options, self._environment = folder, options, environment or {}
        self._store = store or f"sqlite:///{folder}/server.db"
        self._artifacts = artifacts or str(folder / "artifacts")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the server without waiting: it answers seconds later."""
        store = ["--backend-store-uri", self._store, "--artifacts-destination", self._artifacts]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        # Its job runner would be seven more processes.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *where, *self._options],
                env=environment | self._environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        if self._process is None:
            self.launch()
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            try:
                with urlopen(f"{self.uri}/health", timeout=1):
                    return
            except (URLError, OSError):
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the MLflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Send SIGKILL to the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
