"""The registered generator where nothing of ours is installed: a fresh environment, a real server, and its clients."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from installing.constraints import Constraints
from jobs.cli import main
from jobs.dockerfile import BASE
from pipeline.errors import ConfigError
from pipeline.generation import client as clients
from pipeline.generation import pyfunc_model
from pipeline.generation.client import Client, NoServerError, is_server
from pipeline.tracking.mlflow_store import store_uri
from tests.support.servers import free_port

pytestmark = pytest.mark.usefixtures("quick")

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def test_some_addresses_can_only_be_servers() -> None:
    assert is_server("http://127.0.0.1:5701") and is_server("https://host/") and is_server("https://host?key=1")
    assert is_server("http://host/birds/invocations") and is_server("http://host/birds/invocations/?key=1")
    assert not is_server("http://host/checkpoints") and not is_server("models:/a@b") and not is_server("runs/one")
    assert clients.MOST_ROWS == pyfunc_model.MOST_ROWS


def test_nobody_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "http://127.0.0.1:9", str(tmp_path / "x.png")]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9 does not answer" in line


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    sent = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def build(dockerfile: Path, environment: dict[str, str]) -> None:
    """Do what the image's RUN lines do to Python, with the environment's own and the model where it lies here."""
    text = dockerfile.read_text()
    assert f"FROM {BASE}\n" in text and "\nUSER 1000\n\nENTRYPOINT" in text and "DESERIALIZATION=false" in text
    (source,) = re.findall(r"^COPY (\S+) /opt/ml/model$", text, re.MULTILINE)
    model = dockerfile.parent / source
    lines = [line.removeprefix("RUN ") for line in text.splitlines() if re.match("RUN (pip|python) ", line)]
    assert any("mlflow" in line for line in lines) and any("_install_pyfunc_deps" in line for line in lines), lines
    for line in lines:
        command = line.replace("/opt/ml/model", str(model))
        done = subprocess.run(["bash", "-c", command], env=environment, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it installs torch
def test_a_fresh_environment_serves_it(registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    assert main(["dockerfile", "models:/tiny@first", str(image), "--tracking-uri", str(registered_run)]) == 0
    assert f"docker build -t tiny {image}" in capsys.readouterr().out
    assert main(["dockerfile", "models:/tiny@first", str(image), "--tracking-uri", str(registered_run)]) == 78

    venv.create(tmp_path / "venv", with_pip=True)
    # The build of torch that is here: on a machine without a GPU that for CPUs.
    tested = Constraints(CONSTRAINTS.read_text(), hashed=False)
    tested.build = f"torch=={version('torch')}"
    _, limits = tested.constrain(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW_"))}
    environment |= {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PIP_CONSTRAINT": limits, "PIP_NO_COMPILE": "1"}
    if index := os.environ.get("TORCH_INDEX"):
        key = "PIP_FIND_LINKS" if Path(index).is_dir() else "PIP_EXTRA_INDEX_URL"
        environment[key] = f"{environment.get(key, '')} {index}".strip()
    build(image / "Dockerfile", environment)
    look = "import importlib.util as u; print(*(u.find_spec(name) for name in ('model', 'pipeline', 'jobs', 'deepspeed')))"
    command = [f"{tmp_path}/venv/bin/python", "-c", look]
    found = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True).stdout
    assert found == "None None None None\n"

    environment |= {"MLFLOW_TRACKING_URI": store_uri(registered_run, None), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    port = free_port()
    serve = ["mlflow", "models", "serve", "-m", "models:/tiny@first", "--env-manager", "local", "-p", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(serve, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server, tmp_path / "log")
        check_answers(url)
        check_client(url)
        options = ["--seed", "5", "--per-class", "3", "--truncation", "0.8", "--tracking-uri", str(registered_run)]
        drawn = []
        for model, name in ((url, "theirs.png"), ("models:/tiny@first", "ours.png")):
            assert main(["sample", model, str(tmp_path / name), *options, "--batch", "5"]) == 0
            drawn.append(np.asarray(Image.open(tmp_path / name)).astype(int))
        assert abs(drawn[0] - drawn[1]).max() <= 1
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    shutil.rmtree(tmp_path / "venv")  # 2 GB, which pytest would keep


def wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def check_answers(url: str) -> None:
    """What any HTTP client sees."""
    rows = {"dataframe_split": {"columns": ["class_id"], "data": [[3], [0]]}}
    code, first = post(url, rows | {"params": {"seed": 7, "truncation": 0.5}})
    assert code == 200 and [row["class_id"] for row in first["predictions"]] == [3, 0]
    picture = Image.open(io.BytesIO(base64.b64decode(first["predictions"][0]["png"])))
    assert picture.format == "PNG" and picture.size == (32, 32)
    assert post(url, rows | {"params": {"seed": 7, "truncation": 0.5}}) == (200, first)
    assert post(url, rows | {"params": {"seed": 8, "truncation": 0.5}})[1] != first
    for ids, params, reason in (
        ([[4]], {}, "class_id 4: must be from 0 to 3"),
        ([[0]], {"truncation": -1.0}, "truncation -1.0"),
        ([[0]], {"seed": "x"}, "seed"),
        ([[0]], {"max_batch": 4096}, "max_batch 4096: must be from 1 to 1024"),
        ([[0]] * 1025, {}, "1025 rows: at most 1024"),
    ):
        code, said = post(url, {"dataframe_split": {"columns": ["class_id"], "data": ids}, "params": params})
        assert code == 400 and reason in said["message"], said
    assert post(url, {"dataframe_split": {"columns": ["class"], "data": [[0]]}})[0] == 400
    # This is why there is a client: MLflow drops what the model does not know.
    assert post(url, rows | {"params": {"seed": 7, "trunction": 0.5}})[0] == 200


def check_client(url: str) -> None:
    client = Client(url)
    assert client.about["classes"] == ["bars", "blob", "checks", "stripes"] and client.about["resolution"] == 32
    pictures = client.sample([0, 1, 2], seed=3)
    assert all(Image.open(io.BytesIO(picture)).format == "PNG" for picture in pictures)
    assert client.sample([0, 1, 2], seed=3) == pictures and client.sample([2], seed=3, start=2) == pictures[2:]
    assert len(client.sample([0] * 1030, seed=3)) == 1030  # in two requests
    with pytest.raises(ConfigError, match="no parameter trunction; did you mean truncation"):
        client.sample([0], trunction=0.5)
    with pytest.raises(ConfigError, match="class_id 9: must be from 0 to 3"):
        client.sample([9])
    assert Client(f"{url}/invocations").about == client.about
    with pytest.raises(NoServerError, match="404"):
        Client(f"{url}/elsewhere")
