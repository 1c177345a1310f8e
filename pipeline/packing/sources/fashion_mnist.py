"""Fashion-MNIST by name: 60,000 + 10,000 grey images of 28 x 28 pixels in 10 classes (Zalando Research, MIT licence).

Looked for on this machine, then taken from Debian's package `dataset-fashion-mnist` (no root needed: the package is
unpacked, not installed), then from its official address. The four files must have their known checksums, wherever they
come from.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError, DataError, UserError

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# sha256 of the files in Debian's package 0.0~git20200523.55506a9-1; their md5 are those in the data set's own README.
_FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_PACKAGE = "dataset-fashion-mnist"
_IN_PACKAGE = "usr/share/datasets/fashion-mnist"
_INSTALLED = Path("/") / _IN_PACKAGE
_OFFICIAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SECONDS = 600  # for one download or one refresh of the package lists

Files = dict[str, bytes]


def fetch(path: Path | None, say: Callable[[str], None]) -> dict[str, tuple[str, bytes, bytes]]:
    """(name, image file, label file), gzipped IDX, for "train" and "test".

    Args:
        path: folder of the four files, or Debian's .deb; None to look everywhere.
        say: gets a line about each step that takes time.

    Raises ConfigError where nothing was found, DataError for a file with another checksum at `path`.
    """
    files = _from_path(path) if path else _from_anywhere(say)
    return {
        split: (
            f"{part}-images-idx3-ubyte.gz",
            files[f"{part}-images-idx3-ubyte.gz"],
            files[f"{part}-labels-idx1-ubyte.gz"],
        )
        for split, part in (("train", "train"), ("test", "t10k"))
    }


def _from_path(path: Path) -> Files:
    if not path.exists():
        raise ConfigError(f"fashion-mnist:{path} does not exist: name a folder of the four files, or the .deb")
    return _read(path) if path.is_dir() else _unpack(path)


def _from_anywhere(say: Callable[[str], None]) -> Files:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "biggan" / "fashion-mnist"
    tried = []
    for place in (_INSTALLED, cache):
        if not place.is_dir():
            tried.append(f"{place}: not there")
            continue
        try:
            return _read(place)
        except UserError as error:
            tried.append(str(error))
    for get in (_from_debian, _from_official):
        try:
            files = get(say)
        except (UserError, OSError, subprocess.SubprocessError) as error:
            tried.append(f"{_SOURCES[get]}: {_reason(error)}")
            say(f"  {tried[-1]}")
            continue
        _remember(files, cache, say)
        return files
    raise ConfigError(
        f"Fashion-MNIST was not found ({'; '.join(tried)}): download {', '.join(_FILES)} yourself and name their "
        f"folder, or the .deb of {_PACKAGE}, as SRC fashion-mnist:PATH"
    )


def _remember(files: Files, cache: Path, say: Callable[[str], None]) -> None:
    try:
        for name, data in files.items():
            storage.write_bytes(str(cache / name), data)
    except UserError as error:
        say(f"  not kept for the next time: {error}")


def _read(folder: Path) -> Files:
    files = {}
    for name, expected in _FILES.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{folder / name}: {error.strerror}; fashion-mnist needs {', '.join(_FILES)}") from None
        files[name] = _checked(name, data, expected, str(folder))
    return files


def _checked(name: str, data: bytes, expected: str, where: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataError(f"{name} from {where} does not have Fashion-MNIST's checksum: get it again")
    return data


def _unpack(package: Path) -> Files:
    if not shutil.which("dpkg-deb"):
        raise ConfigError(f"no dpkg-deb on this machine to unpack {package}: name a folder of the four files")
    with tempfile.TemporaryDirectory() as folder:
        done = _run("dpkg-deb", "-x", str(package), folder)
        if done.returncode:
            raise DataError(f"dpkg-deb cannot unpack {package} ({_last_line(done.stderr)}): get it again")
        return _read(Path(folder) / _IN_PACKAGE)


def _from_debian(say: Callable[[str], None]) -> Files:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ConfigError("no apt-get here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"getting Debian's {_PACKAGE} (31 MB)")
        done = _run("apt-get", *_APT, "download", _PACKAGE, cwd=folder)
        if done.returncode:
            # Lists of our own: nothing of the system's is touched, and nobody has to be root.
            say("refreshing the package lists first, in a temporary folder")
            lists = _private_apt(folder)
            _run("apt-get", *lists, "update")  # a third party's broken list is not our concern, so judge by the download
            done = _run("apt-get", *lists, "download", _PACKAGE, cwd=folder)
        packages = list(folder.glob("*.deb"))
        if done.returncode or not packages:
            raise ConfigError(f"apt-get cannot download it ({_last_line(done.stderr)})")
        return _unpack(packages[0])


# As root, apt would drop to a user that cannot write into our temporary folder.
_APT = ("-q", "-o", "APT::Sandbox::User=root")


def _private_apt(folder: Path) -> tuple[str, ...]:
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    status = Path("/var/lib/dpkg/status")
    options = (
        f"Dir::State={folder}/state",
        f"Dir::State::lists={folder}/state/lists",
        f"Dir::State::status={status}",
        f"Dir::Cache={folder}/cache",
    )
    return *_APT, *(word for option in options for word in ("-o", option))


def _from_official(say: Callable[[str], None]) -> Files:
    files = {}
    opener = urllib.request.build_opener()  # `urlopen` would keep the proxy of its first call for good
    for name, expected in _FILES.items():
        say(f"getting {_OFFICIAL}{name}")
        with opener.open(_OFFICIAL + name, timeout=30) as answer:
            files[name] = _checked(name, answer.read(), expected, _OFFICIAL)
    return files


_SOURCES = {_from_debian: f"Debian's package {_PACKAGE}", _from_official: _OFFICIAL}


def _run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
