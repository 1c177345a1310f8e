"""A secret in every place where a user may put one: found in no output, page, tag, manifest or process list, and in files of
mode 0600 alone."""

import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from pipeline import variables
from tests.support.tiny_runs import TINY, train
from tests.support.web_store import LOGIN, serve

SEED = "S33D"
ENVIRONMENT = {
    "MLFLOW_TRACKING_PASSWORD": f"{SEED}-mlflow",
    "MLFLOW_TRACKING_URI": f"https://me:{SEED}-variable@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": f"{SEED}-aws",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={SEED}-azure==",
    "HTTP_PROXY": f"http://me:{SEED}-proxy@127.0.0.1:9",
    "HTTPS_PROXY": f"http://me:{SEED}-proxy@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    variables.HTTP_LOGINS: f"https://me:{SEED}-login@data.example",
}
REMOTE = ("data.uri=s3://b/x", "checkpoint.uri=s3://b/y", "tracking.mode=off")


@dataclass
class Watch:
    """Looks at the command lines of all processes of this machine, from time to time."""

    seen: set[str] = field(default_factory=set)
    looks: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.ended.wait(0.05):
            self.looks += 1
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if SEED in text:
                    self.seen.add(text)


@pytest.fixture
def watch() -> Iterator[Watch]:
    watched = Watch()
    thread = threading.Thread(target=watched)
    thread.start()
    yield watched
    watched.ended.set()
    thread.join()
    assert watched.looks and not watched.seen


def holders(folder: Path) -> dict[str, int]:
    """Files below `folder` that hold a secret, with their modes."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and SEED.encode() in path.read_bytes():
            found[str(path.relative_to(folder))] = stat.S_IMODE(path.stat().st_mode)
    return found


@pytest.mark.slow
def test_a_training_tells_its_secrets_to_nobody(
    tmp_path: Path, shards: Path, empty_store: Path, watch: Watch, quick: None, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Places: data.uri, tracking.uri (name and query), the environment, and proxies."""
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    file, store = tmp_path / "tiny.yaml", tmp_path / "sync.db"
    store.write_bytes(empty_store.read_bytes())
    with serve(shards, "login") as server:
        uri = server.address.replace("//", f"//{LOGIN}@")
        place = {"uri": f"http://me:{SEED}@p@127.0.0.1:9/x?password={SEED}", "mode": "offline"}
        small = {"total_images": 64, "processes": 1, "sample_every": 0, "data": {"uri": uri}, "tracking": place}
        small["batch"] = TINY["batch"] | {"norm_group": 8}
        config = TINY | small | {"checkpoint": {"every": 64, "uri": str(work / "kept")}}
        file.write_text(yaml.safe_dump(config))
        variables = ENVIRONMENT | {"TMPDIR": str(temporary)}
        first = train(str(file), work / "run", **variables)
        assert first.returncode == 0, first.stdout + first.stderr
    said = first.stdout + first.stderr
    monkeypatch.chdir(work)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in (
        ["report", "run"],
        ["status", "run"],
        ["list", "."],
        ["sync", "run", "--tracking", f"sqlite:///{store}"],
        ["train", str(file), "run=other", "--print-config"],
        ["describe", str(file), "run=other"],
    ):
        assert main(command) in (0, 74, 78)
    said += "".join(capfd.readouterr())
    assert SEED not in said
    assert holders(work) == {"run/config.yaml": 0o600, "run/journal.jsonl": 0o600}
    assert holders(temporary) == {} and SEED.encode() not in store.read_bytes()
    assert "//127.0.0.1" in (work / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["index", "URI/000000.tar", "--out", "out"], 78),
        (["index", "URI/000000.tar?token=S33D", "--out", "out"], 78),
        (["train", "TINY", "run=r", "data.uri=URI"], 78),
        (["train", "TINY", "run=r", "data.uri=ADDRESS/x?X-Amz-Signature=S33D"], 78),
        (["train", "TINY", "run=r", "init=URI/0000000001"], 78),
        (["train", "TINY", "run=r", "checkpoint.uri=nosuch://bucket/x?token=S33D"], 78),
        (["train", "TINY", "run=r", "data.mix.a.uri=http://me:S33D@"], 78),
        (["train", "TINY", "run=r", "seed=postgresql://me:S33D@host/x"], 78),
        (["shard", "nowhere", "http://me:S33D@host/x"], 78),
        (["sample", "URI", "out.png"], 74),
        (["copy", "models:/a@b", "--tracking-uri", "nosuch://me:S33D@host", "--to", "nosuch://me:S33D@host"], 78),
        (["sync", "nowhere", "--tracking", "http://me:S33D@host"], 78),
        (["doctor", "--data", "URI"], 78),
        (["status", "http://me:S33D@host"], 78),
        (["nonsense=http://me:S33D@host"], 78),
        (["submit", "jobset", "TINY", "--cluster=CLUSTER", "run=r", "data.uri=URI"], 78),
        (["submit", "skypilot", "TINY", "--cluster=CLUSTER", "run=r", "tracking.uri=https://me:S33D@host"], 78),
        (["submit", "jobset", "TINY", "--cluster=CLUSTER", "run=r", "checkpoint.uri=s3://b/x?token=S33D"], 78),
        (
            [
                "submit",
                "jobset",
                "TINY",
                "--cluster=LEAKY",
                "run=r",
                *REMOTE,
            ],
            78,
        ),
    ],
)
def test_no_refusal_shows_a_secret(
    command: list[str], code: int, tmp_path: Path, tiny: str, shards: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "cluster.yaml").write_text("image: x:1\ngpus: 0\n")
    leaky = {"image": "x:1", "env": {"HTTP_PROXY": "http://me:S33D@proxy"}}
    (tmp_path / "leaky.yaml").write_text(yaml.safe_dump(leaky))
    (tmp_path / "leaky.yaml").chmod(0o600)
    with serve(shards, "login") as server:
        words = {"URI": server.address.replace("//", "//me:wrong-S33D@"), "ADDRESS": server.address, "TINY": tiny}
        words |= {"CLUSTER": "cluster.yaml", "LEAKY": "leaky.yaml"}
        for name, value in words.items():
            command = [part.replace(name, value) for part in command]
        assert main(command) == code
    said = "".join(capfd.readouterr())
    assert said.startswith("biggan: error: ") and SEED not in said and "Traceback" not in said
    assert holders(tmp_path) == {"leaky.yaml": 0o600}


def test_a_login_from_the_environment_or_netrc_opens_a_server(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(shards, "login") as server:
        assert main(["index", server.address, "--verify"]) == 78
        assert f"~/.netrc or {variables.HTTP_LOGINS}" in capsys.readouterr().err
        port, (user, word) = server.server_port, LOGIN.split(":")
        for folder, opens in (("", True), ("/elsewhere", False)):
            monkeypatch.setenv(
                variables.HTTP_LOGINS, f"https://other.example {server.address.replace('//', f'//{LOGIN}@')}{folder}"
            )
            assert main(["index", server.address, "--verify"]) == (0 if opens else 78)
        monkeypatch.setenv(variables.HTTP_LOGINS, f"http://{LOGIN}@127.0.0.1:{port + 1}")  # another server gets nothing
        assert main(["index", server.address, "--verify"]) == 78
        monkeypatch.delenv(variables.HTTP_LOGINS)
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {user} password {word}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert main(["index", server.address, "--verify"]) == 0
    with serve(shards, "signed") as server:
        monkeypatch.setenv(variables.HTTP_LOGINS, f"{server.address}?sig=a-secret")
        assert main(["index", server.address, "--verify"]) == 0
        monkeypatch.setenv(variables.HTTP_LOGINS, f"me:{SEED}")
        assert main(["index", server.address, "--verify"]) == 78
    assert SEED not in "".join(capsys.readouterr())
