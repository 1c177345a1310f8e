"""Files of a registered model that somebody has changed in the artifact store: no command runs or uses them."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from pipeline.errors import DataError
from pipeline.images.pillow import png
from pipeline.registry import model_digest, model_files, versions
from tests.support.registered_models import evaluation
from tests.support.tiny_runs import assert_one_line

pytestmark = pytest.mark.usefixtures("quick")


class Store:
    """An MLflow with a copy of a version, the folder that its files are in, and what those would write if they ran."""

    def __init__(self, uri: str, files: Path) -> None:
        self.uri, self.files, self.ran = uri, files, files.parent / "ran"
        self.client = versions.use(uri)

    def tag(self, key: str, value: str | None) -> None:
        if value is None:
            self.client.delete_model_version_tag("tiny", "1", key)
        else:
            self.client.set_model_version_tag("tiny", "1", key, value)

    def trap(self, name: str) -> None:
        """Add a line to a file of code that tells that it ran."""
        file = self.files / name
        file.write_text(f"open({str(self.ran)!r}, 'w')\n{file.read_text() if file.exists() else ''}")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, registered_run: Path, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("copied")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        to = ["--to", f"sqlite:///{folder / 'mlflow.db'}"]
        assert main(["copy", "models:/tiny@first", *to, "--tracking-uri", str(registered_run)]) == 0
    return folder


@pytest.fixture
def store(copied: Path, tmp_path: Path) -> Iterator[Store]:
    (model,) = copied.glob("artifacts/*/artifacts/model")
    shutil.copytree(model, tmp_path / "before")
    shutil.copy(copied / "mlflow.db", tmp_path / "before.db")
    found = Store(f"sqlite:///{copied / 'mlflow.db'}", model)
    yield found
    shutil.rmtree(model)
    shutil.copytree(tmp_path / "before", model)
    shutil.copy(tmp_path / "before.db", copied / "mlflow.db")
    found.ran.unlink(missing_ok=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "code": lambda files: (files / "pyfunc_model.py").write_text("import os\nos._exit(0)\n"),
    "a network": lambda files: (files / "artifacts/model/biggan.py").open("a").write("\n"),
    "which code is run": lambda files: (files / "MLmodel").write_text(
        (files / "MLmodel").read_text().replace("mlflow.pyfunc.loaders.code_model", "evil")
    ),
    "settings": lambda files: (files / "artifacts/config.json").write_text(
        (files / "artifacts/config.json").read_text().replace("4096", "4097")
    ),
    "golden samples": lambda files: (files / "artifacts/golden.png").open("ab").write(b"\0"),
    "weights": lambda files: (files / "artifacts/generator.safetensors").open("ab").write(b"\0"),
    "one more": lambda files: (files / "artifacts/model/safetensors.py").write_text(""),
    "one less": lambda files: (files / "requirements.txt").unlink(),
    "another name": lambda files: (files / "requirements.txt").rename(files / "requirements2.txt"),
    "its name and version, elsewhere": lambda files: (files / "artifacts/registered_model_meta").write_text("a: b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_changed_file_is_found(store: Store, tmp_path: Path, change: str) -> None:
    CHANGES[change](store.files)
    with pytest.raises(DataError, match=r"tiny version 1: its (files|weights) are not those that were registered"):
        model_files.fetch(store.client, store.client.get_model_version("tiny", "1"), tmp_path)


def test_links_and_devices_are_no_files_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("")
    first = model_digest.list_files(tmp_path / "model")
    (tmp_path / "model" / "b.py").symlink_to("a.py")
    with pytest.raises(DataError, match=r"b\.py is a link"):
        model_digest.list_files(tmp_path / "model")
    (tmp_path / "model" / "b.py").unlink()
    assert model_digest.list_files(tmp_path / "model") == first


def test_no_command_runs_changed_code(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("pyfunc_model.py", "artifacts/model/__init__.py"):
        store.trap(file)
    store.tag("evaluation", json.dumps(evaluation(1.0)))
    for code, *argv in (
        (80, "promote", "tiny/1", "--first"),
        (65, "sample", "models:/tiny/1", str(tmp_path / "x.png")),
        (65, "explore", "models:/tiny/1", "--port", "0"),
        (65, "export", "models:/tiny/1", str(tmp_path / "exported")),
        (65, "dockerfile", "models:/tiny/1", str(tmp_path / "docker")),
        (65, "copy", "models:/tiny/1", "--to", f"sqlite:///{tmp_path / 'before.db'}", "--name", "other"),
    ):
        capsys.readouterr()
        done = main([*argv, "--tracking-uri", store.uri])
        assert_one_line(capsys.readouterr().err, done, code, "tiny version 1: its files are not those that were registered")
        assert not store.ran.exists()
    assert "champion" not in store.client.get_registered_model("tiny").aliases


def test_what_mlflow_and_python_add_to_a_store_is_neither_missed_nor_run(store: Store, tmp_path: Path) -> None:
    """Serving from a local store leaves a file there. Bytecode beside sources would be run instead of them."""
    (store.files / "registered_model_meta").write_text("model_name: tiny\nmodel_version: 1\n")
    code = compile(f"open({str(store.ran)!r}, 'w')", "biggan.py", "exec")
    cache = Path(importlib.util.cache_from_source(str(store.files / "artifacts/model/biggan.py")))
    cache.parent.mkdir()
    import importlib._bootstrap_external as external

    never_checked = external._code_to_hash_pyc(code, b"\0" * 8, False)  # type: ignore[attr-defined]
    cache.write_bytes(never_checked)
    assert main(["sample", "models:/tiny/1", str(tmp_path / "x.png"), "--per-class", "1", "--tracking-uri", store.uri]) == 0
    assert (tmp_path / "x.png").exists() and not store.ran.exists() and cache.exists()


def test_a_version_from_before_digests_goes_on_working(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.tag("files_sha256", None)
    sample = ["sample", "models:/tiny/1", str(tmp_path / "x.png"), "--per-class", "1", "--tracking-uri", store.uri]
    assert main(sample) == 0
    assert capsys.readouterr().err.count("tiny version 1 was registered before digests of files were kept") == 1
    CHANGES["weights"](store.files)
    assert main(sample) == 65
    assert "its weights are not those that were registered" in capsys.readouterr().err


def test_a_tag_is_not_believed(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Code is not run for a version that `biggan register` has not made, and explore shows what it has hashed."""
    for code, key, value, said in (
        (65, "images", "9" * 400, "its tag images is '9999"),
        (65, "weights_sha256", "f" * 64, "its weights are not those that were registered"),
        (78, "weights_sha256", None, "is no generator that `biggan register` has put there"),
    ):
        store.tag(key, value)
        done = main(["explore", "models:/tiny/1", "--port", "0", "--tracking-uri", store.uri])
        assert_one_line(capsys.readouterr().err, done, code, said)


@pytest.mark.long
def test_golden_samples_are_drawn_by_our_own_code(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the model's code runs; without a digest, too."""
    store.tag("evaluation", json.dumps(evaluation(1.0)))
    store.tag("files_sha256", None)
    store.trap("pyfunc_model.py")
    golden = store.files / "artifacts" / "golden.png"
    for made, said in (
        (golden.read_bytes() + b"more", "its golden samples are not those that were registered"),
        (png(np.zeros((32, 128, 1), np.uint8)), "does not draw its golden samples: values are off by"),
        (png(np.zeros((32, 32, 3), np.uint8)), "does not draw its golden samples: values are off by 255"),
        (b"no picture", "golden.png: UnidentifiedImageError"),
        (b"", "has no golden samples: register its run again under another --name"),
    ):
        golden.write_bytes(made)
        assert main(["promote", "tiny/1", "--first", "--tracking-uri", store.uri]) == 80
        assert said in capsys.readouterr().err and not store.ran.exists()
        if "golden_sha256" in store.client.get_model_version("tiny", "1").tags:
            store.tag("golden_sha256", None)
    assert "champion" not in store.client.get_registered_model("tiny").aliases
