"""The server of docs/mlflow-server.md: PostgreSQL, artifacts in S3, passwords; and what is said when one is wrong."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.servers.mlflow_server import MlflowServer
from jobs.cli import main
from pipeline import storage
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.servers import S3Server, free_port
from tests.support.tiny_runs import assert_one_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Postgres:
    """A PostgreSQL of this test's own. As root it runs as the user `postgres`, for it refuses root."""

    def __init__(self, programs: Path):
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="biggan-postgres-"))
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            known = pwd.getpwnam("postgres")
            os.chown(self.folder, known.pw_uid, known.pw_gid)
            self._user = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
        self._port = free_port()
        self._run("initdb", "-D", "data", "-U", "mlflow", "-A", "trust", "--no-sync")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "mlflow", "mlflow_auth")
        self.url = f"postgresql://mlflow@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self._user)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    program = found[-1] if found else shutil.which("pg_ctl")
    if not program:
        pytest.skip("no PostgreSQL here (Debian: postgresql)")
    server = Postgres(Path(program).parent)
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3_server: S3Server) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    store = postgres.url.replace("postgresql", "postgresql+psycopg2")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
        f"database_uri = {store.removesuffix('postgres')}mlflow_auth\nadmin_username = admin\n"
    )
    environment = {
        **s3_server.env,
        "MLFLOW_S3_ENDPOINT_URL": s3_server.env["AWS_ENDPOINT_URL"],
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
    }
    server = MlflowServer(
        folder, "--app-name", "basic-auth",
        store=store, artifacts=f"{s3_server.uri}/mlflow", environment=environment,
    )  # fmt: skip
    server.start()
    yield server
    server.kill()


def rows_of(postgres: Postgres, uid: str) -> list[tuple[int, float]]:
    import psycopg2

    with psycopg2.connect(postgres.url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select step, value from metrics natural join (select run_uuid from tags where value = %s) runs order by 1", (uid,)
        )
        return cursor.fetchall()


def test_a_run_goes_through_a_password_to_postgresql_and_s3_and_survives_the_database(
    tmp_path: Path,
    server: MlflowServer,
    postgres: Postgres,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    tracker = Tracker(TrackingConfig(mode="offline", uri=server.uri), run, "uid", {"lr": 1}, {})
    for step in range(50):
        tracker.metrics({"loss": step / 7}, step)
    tracker.image(np.zeros((8, 8, 3), np.uint8), "samples", 49)
    assert main(["sync", str(run)]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, "MLFLOW_TRACKING_PASSWORD", server.uri)

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
    assert main(["sync", str(run)]) == 0
    tracker.metrics({"loss": 1.0}, 50)
    tracker.close("FINISHED")
    postgres.stop()
    assert main(["sync", str(run), "--wait", "1"]) == 74
    postgres.start()
    assert main(["sync", str(run), "--wait", "60"]) == 0
    assert rows_of(postgres, "uid") == [(step, step / 7) for step in range(50)] + [(50, 1.0)]
    capsys.readouterr()
    experiment = storage.names(f"{s3.uri}/mlflow")[0]
    uuid = storage.names(f"{s3.uri}/mlflow/{experiment}")[0]
    images = storage.names(f"{s3.uri}/mlflow/{experiment}/{uuid}/artifacts/images")
    assert sum(name.endswith(".png") for name in images) == 1


def test_a_name_that_the_server_does_not_know_itself_by_says_which_option(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
    run = tmp_path / "named"
    run.mkdir()
    # A name of this machine's own address that nobody has told the server.
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest: resolve("127.0.0.1" if host == "mlflow.cluster" else host, *rest)
    )
    monkeypatch.setenv("NO_PROXY", "mlflow.cluster,127.0.0.1")
    uri = f"http://mlflow.cluster:{server.port}"
    Tracker(TrackingConfig(mode="offline", uri=uri), run, "named", {}, {}).close("FINISHED")
    began = time.monotonic()
    assert main(["sync", str(run)]) == 78
    assert time.monotonic() - began < 20
    assert_one_line(capsys.readouterr().err, 78, 78, f"--allowed-hosts mlflow.cluster,mlflow.cluster:{server.port}")
