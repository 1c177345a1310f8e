"""Make small real files of every kind, mostly with the product's own commands. `fuzz_readers` damages them."""

import gzip
import io
import json
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.support.foreign_checkpoints import save, state
from pipeline.packing.encode import PackConfig

PACK = PackConfig(resolution=32, shard_bytes=5000, workers=1)
"""Of what is half packed."""

_RNG = np.random.default_rng(0)
_CASES = Path(__file__).parents[3] / "tests" / "fixtures" / "foreign" / "cases.json"


def picture(form: str = "png", side: int = 16, grey: bool = False) -> bytes:
    """An image of noise."""
    out = io.BytesIO()
    pixels = _RNG.integers(0, 256, (side, side) if grey else (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(out, {"jpg": "jpeg", "tif": "tiff", "pgm": "ppm"}.get(form, form))
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tree(folder: Path) -> None:
    """Class folders with every form of picture."""
    for i, form in enumerate(("png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "png")):
        _write(folder / "src" / ("cat", "dog")[i % 2] / f"{i}.{form}", picture(form, 20))


def archives(folder: Path) -> None:
    """A zip of class folders."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "src.zip", "w") as archive:
        for i in range(6):
            archive.writestr(f"{('cat', 'dog')[i % 2]}/{i}.png", picture(), zipfile.ZIP_DEFLATED if i % 3 else None)


def stylegan(folder: Path) -> None:
    """A zip with labels in dataset.json."""
    folder.mkdir()
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    labels = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]})
    with zipfile.ZipFile(folder / "src.zip", "w") as archive:
        for name in names:
            archive.writestr(name, picture())
        archive.writestr("dataset.json", labels)
    (folder / "labels.json").write_text(labels)


def idx(folder: Path) -> None:
    """Four files, of which two are compressed."""
    for part, wrap in (("train", lambda data: gzip.compress(data, 1)), ("t10k", bytes)):
        for name, array in (("images-idx3", _RNG.integers(0, 256, (6, 28, 28))), ("labels-idx1", np.arange(6) % 3)):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            ending = ".gz" if part == "train" else ""
            _write(folder / "src" / f"{part}-{name}-ubyte{ending}", wrap(head + array.astype(np.uint8).tobytes()))


def cifar(folder: Path) -> None:
    """The binary version."""
    source = folder / "src"
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        _write(source / name, b"".join(bytes((i,)) + _RNG.bytes(3072) for i in range(2)))
    (source / "batches.meta.txt").write_text("".join(f"class {i}\n" for i in range(10)))


def cifar_tar(folder: Path) -> None:
    """The same as its page has it."""
    cifar(folder / "made")
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(folder / "made" / "src", "cifar-10-batches-bin")
    shutil.rmtree(folder / "made")


def _tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def imagenet(folder: Path) -> None:
    """Both tars and the devkit."""
    from scipy.io import savemat

    from pipeline.packing.sources.imagenet import DEVKIT, TRAIN, VAL

    ids, words = ("n02119789", "n01440764"), ("kit fox, Vulpes macrotis", "tench, Tinca tinca")
    source = folder / "src"
    inner = {f"{name}.tar": _tar({f"{name}_{i}.JPEG": picture("jpg") for i in range(2)}) for name in ids}
    _write(source / TRAIN, _tar(inner))
    _write(source / VAL, _tar({f"ILSVRC2012_val_{i + 1:08d}.JPEG": picture("jpg") for i in range(3)}))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    rows = [(i + 1, name, text, "", 0, [], 0, 2) for i, (name, text) in enumerate(zip(ids, words, strict=True))]
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, [(name, "O") for name in fields]).reshape(-1, 1)})
    kit = "ILSVRC2012_devkit_t12/data"
    truth = f"{kit}/ILSVRC2012_validation_ground_truth.txt"
    _write(source / DEVKIT, _tar({f"{kit}/meta.mat": mat.getvalue(), truth: b"2\n1\n1\n"}, "w:gz"))


def parquet(folder: Path) -> None:
    """As `datasets` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "src").mkdir(parents=True)
    table = pa.table({"image": [{"bytes": picture(), "path": None} for _ in range(6)], "label": [0, 1, 0, 1, 0, 1]})
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), folder / "src" / "train.parquet", row_group_size=3)


def tars(folder: Path) -> None:
    """Shards of another program, with labels in three forms,"""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in range(4):
            files |= {f"{shard}{i}.jpg": picture("jpg"), f"{shard}{i}.cls": str(i % 2).encode()}
        _write(folder / "src" / f"{shard:06d}.tar", _tar(files))


def shards(folder: Path) -> None:
    """A set that is packed."""
    packed_twice(folder)
    shutil.rmtree(folder / "tree")


def _trees(folder: Path) -> Path:
    for i in range(8):
        _write(folder / "tree" / ("cat", "dog")[i % 2] / f"{i}.png", picture(side=32))
    return folder / "tree"


def half_packed(folder: Path) -> None:
    """What an interrupted `biggan shard` leaves, beside its source."""
    from pipeline.packing.pack import pack
    from pipeline.packing.sources.detect import open_source

    (source,) = open_source(str(_trees(folder)), lambda line: None)
    (folder / "shards").mkdir()

    def progress(done: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    try:
        pack(source, str(folder / "shards"), PACK, progress)
    except KeyboardInterrupt:
        return
    raise RuntimeError("nothing interrupted the pack")


def packed_twice(folder: Path) -> None:
    """A finished pack beside its source."""
    _biggan("shard", str(_trees(folder)), str(folder / "shards"), "--resolution", "32")


def _foreign(case: str, networks: tuple[str, ...] = ()) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        known = json.loads(_CASES.read_text())[case]
        shapes = known["state"]
        states = {name: state(name, shapes[name]) for name in networks or shapes}
        save(folder / "src", known["form"], states, known["settings"])

    return make


def biggan_tensors(folder: Path) -> None:
    """Weights of BigGAN-PyTorch as .safetensors."""
    import safetensors.torch

    shapes = json.loads(_CASES.read_text())["biggan-32-unshared"]["state"]
    for name in shapes:
        tensors = {key: tensor.contiguous() for key, tensor in state(name, shapes[name]).items()}
        _write(folder / "src" / f"{name}.safetensors", safetensors.torch.save(tensors))


def answers(folder: Path) -> None:
    """What the server of a model answers: about itself, and with pictures; and the head of each answer."""
    import base64

    about = {"classes": ["cat", "dog"], "images": 10, "weights_sha256": "0" * 64, "resolution": 8, "channels": 3}
    about |= {"params": ["seed", "start", "max_batch", "format", "truncation"]}
    folder.mkdir()
    (folder / "description.json").write_text(json.dumps(about))
    rows = [{"class_id": i % 2, "png": base64.b64encode(picture(side=8)).decode()} for i in range(4)]
    (folder / "pictures.json").write_text(json.dumps({"predictions": rows}))
    for kind in ("about", "pictures"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: LENGTH\r\n\r\n"
        (folder / f"{kind}.head").write_bytes(head)


def tags(folder: Path) -> None:
    """Of a registered model: an evaluation, and who promotes it."""
    from pipeline.liveness import this_process

    folder.mkdir()
    evaluation = {"metrics": {"FID[x]": 12.5}, "recipe": {"samples": 500}, "recipe_id": "0" * 16}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "claim.json").write_text(json.dumps({"user": "me", **this_process(), "time": time.time()}))


def ranges(folder: Path, span: str = "100-299") -> None:
    """What a web server answers to a range."""
    folder.mkdir()
    (folder / "body").write_bytes(bytes(range(200)))
    fields = (f"Content-Range: bytes {span}/1000", 'ETag: "a"', "Content-Length: LENGTH")
    (folder / "head").write_text("\r\n".join(["HTTP/1.1 206 Partial Content", *fields, "", ""]), newline="")


def size(folder: Path) -> None:
    """What it answers when it is asked for the first byte, to learn the size."""
    ranges(folder, "0-0")
    (folder / "body").unlink()


def _biggan(*argv: str) -> None:
    from jobs import cli

    if cli.main(argv):
        raise RuntimeError(f"biggan {' '.join(argv)} failed")


def run(folder: Path) -> None:
    """A run's folder with all the files that there may be, and exported weights beside it."""
    from benchmarks.support.fuzz.run_seeds import make_run

    make_run(folder)


SEEDS: dict[str, Callable[[Path], None]] = {
    **{make.__name__: make for make in (tree, archives, stylegan, idx, cifar, cifar_tar, imagenet, parquet, tars, shards)},
    **{make.__name__: make for make in (half_packed, packed_twice, biggan_tensors, answers, ranges, size, tags, run)},
    "biggan_pytorch": _foreign("biggan-32-unshared", ("G", "D")),
    "studiogan": _foreign("studiogan-32", ("G", "D")),
    "huggingface": _foreign("huggingface-128"),
}
"""By the name of their folder: what makes it."""
