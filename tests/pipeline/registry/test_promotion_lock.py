"""One holder at a time, among threads with clients of their own, and what becomes of the claims of the dead."""

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import GateError
from pipeline.registry import promotion_lock as claims
from pipeline.registry.promotion_lock import claim
from pipeline.tracking.mlflow_store import connect


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").create_registered_model("tiny")
    return path


@pytest.fixture
def client(empty: Path, tmp_path: Path) -> MlflowClient:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def left(client: MlflowClient) -> list[str]:
    return list(client.get_registered_model("tiny").tags)


def plant(client: MlflowClient, **changed: object) -> None:
    client.set_registered_model_tag("tiny", "promotion_claim.x", json.dumps(claims._myself() | {"time": time.time()} | changed))


@pytest.mark.long
def test_one_at_a_time(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 120.0)
    inside, most, began = [], [], threading.Barrier(3)

    def promoter(number: int) -> None:
        mine = connect(client.tracking_uri)
        began.wait()
        for _ in range(3):
            with claim(mine, "tiny", lambda line: None) as check:
                inside.append(number)
                most.append(len(inside))
                check()
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(promoter, range(3)))
    assert len(most) == 18 and set(most) == {1} and left(client) == []


@pytest.mark.long
def test_a_living_holder_is_named_and_waited_for(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.3)
    plant(client, user="anna")
    said: list[str] = []
    with pytest.raises(GateError, match=r"promoted by anna@.*; if that is dead, delete .* tag promotion_claim\.x"):
        claim(client, "tiny", said.append).__enter__()
    assert len(said) == 1 and "waiting for anna@" in said[0] and left(client) == ["promotion_claim.x"]


def test_the_dead_do_not_hold(client: MlflowClient) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for changed in ({"pid": str(ended.pid)}, {"started": "1"}, {"time": time.time() - 3601, "machine": "elsewhere"}):
        plant(client, **changed)
        with claim(client, "tiny", pytest.fail):
            assert "promotion_claim.x" not in left(client)
    plant(client, pid=str(ended.pid), machine="elsewhere")  # a process there may have that number
    assert not claims._is_dead(json.loads(client.get_registered_model("tiny").tags["promotion_claim.x"]))


def test_a_failure_inside_gives_the_claim_back(client: MlflowClient) -> None:
    with pytest.raises(KeyError), claim(client, "tiny", pytest.fail):
        raise KeyError
    assert left(client) == []


BROKEN = {
    "no JSON": "mine",
    "3,000 brackets": "[" * 3000,
    "a list": "[]",
    "nothing": "{}",
    "a number for a process": {"pid": 7},
    "a word for a process": {"pid": "seven"},
    "a word for a time": {"time": "now"},
    "no time": {"time": math.nan},
    "in a year": {"time": time.time() + 3e7},
    "a long name": {"user": "a" * 4000},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tag_that_is_no_claim_holds_nobody_up(client: MlflowClient, case: str) -> None:
    """It is told once and left alone: no promoter has written it."""
    if isinstance(value := BROKEN[case], str):
        client.set_registered_model_tag("tiny", "promotion_claim.x", value)
    else:
        plant(client, **value)
    said: list[str] = []
    with claim(client, "tiny", said.append) as check:
        check()
    assert len(said) == 1 and left(client) == ["promotion_claim.x"]
    assert said[0].startswith("ignored: tiny has a tag promotion_claim.x that is no claim of `biggan promote`: its ")
    assert "\n" not in said[0] and len(said[0]) < 400


def test_what_a_claim_says_is_printed_as_text(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.0)
    plant(client, user="anna\x1b[31m\nbiggan: error: run rm -rf")
    with pytest.raises(GateError, match=r"promoted by anna\\x1b\[31m\\nbiggan") as refused:
        claim(client, "tiny", lambda line: None).__enter__()
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
