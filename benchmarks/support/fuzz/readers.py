"""List what reads files of others, one row for each kind. A new reader is one more row."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.support.fuzz.seeds import PACK
from benchmarks.support.fuzz.tries import Reader
from pipeline.errors import as_user_error


def biggan(*argv: object) -> None:
    """Run a command as `jobs.cli` does, and let what it raises through."""
    from jobs import cli

    words = [str(word) for word in argv]
    args = cli._parser(words[:1]).parse_args(words)
    try:
        args.run(args)
    except OSError as error:
        if known := as_user_error(error):
            raise known from error
        raise


def _shard(name: str = "src", *flags: str) -> Callable[[Path], object]:
    return lambda folder: biggan("shard", folder / name, folder / "out", "--resolution", "32", "--workers", "1", *flags)


def _read_all(folder: Path) -> None:
    from pipeline.data.loader import DataConfig, load_all
    from pipeline.data.manifest import load_manifest

    config = DataConfig(uri=str(folder / "shards"), decode_threads=1, bad_fraction=0.5)
    load_all(config, load_manifest(config.uri))


def _right_sums(folder: Path) -> None:
    """Correct the sums of indexes and tars in a manifest, and its own."""
    from google_crc32c import value

    from pipeline.data.manifest import _NOTES, Manifest

    place = folder / "shards" / "manifest.json"
    document = json.loads(place.read_text())
    for shard in document["shards"]:
        tar = (folder / "shards" / shard["name"]).read_bytes()
        shard |= {"crc32c": value(tar), "bytes": len(tar)}
        shard["index_crc32c"] = value((folder / "shards" / (shard["name"] + ".idx")).read_bytes())
    content = {name: document[name] for name in Manifest.__dataclass_fields__ if name not in _NOTES}
    document["fingerprint"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    place.write_text(json.dumps(document))


def _resume_pack(folder: Path) -> None:
    from pipeline.packing.pack import pack, packed
    from pipeline.packing.sources.detect import open_source

    (source,) = open_source(str(folder / "tree"), lambda line: None)
    if packed(source, str(folder / "shards"), PACK) is None:
        pack(source, str(folder / "shards"), PACK, lambda done: None)


def _right_commit(folder: Path) -> None:
    """Correct COMMIT.json's sums of the files and of itself."""
    for place in folder.rglob("COMMIT.json"):
        document = json.loads(place.read_text())
        for name, row in document["commit"]["files"].items():
            data = (place.parent / name).read_bytes()
            row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        document["sha256"] = hashlib.sha256(json.dumps(document["commit"], sort_keys=True).encode()).hexdigest()
        place.write_text(json.dumps(document))


def _right_weights(folder: Path) -> None:
    """Correct what an exported model says of its weights."""
    for place in folder.rglob("exported/config.json"):
        document = json.loads(place.read_text())
        document["weights_sha256"] = hashlib.sha256((place.parent / "generator.safetensors").read_bytes()).hexdigest()
        place.write_text(json.dumps(document))


def _sample(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        from pipeline.generation import load

        load.STANDING_SAMPLES = 8
        biggan("sample", folder / name, folder / "sheet.png", "--per-class", "1")

    return read


def _import(folder: Path) -> None:
    biggan("import", folder / "src", folder / "out")


READERS: tuple[Reader, ...] = (
    Reader("images", "tree", ("src/*/*",), _shard()),
    Reader("images-kept", "tree", ("src/*/*",), lambda folder: biggan("shard", folder / "src", folder / "out", "--keep")),
    Reader("zip", "archives", ("src.zip",), _shard("src.zip")),
    Reader("zip-stylegan", "stylegan", ("src.zip",), _shard("src.zip")),
    Reader("idx", "idx", ("src/*",), lambda folder: biggan("shard", folder / "src", folder / "out")),
    Reader("cifar", "cifar", ("src/*",), lambda folder: biggan("shard", folder / "src", folder / "out")),
    Reader("cifar-tar", "cifar_tar", ("*.gz",), _shard("cifar-10-binary.tar.gz")),
    Reader("imagenet", "imagenet", ("src/*",), _shard()),
    Reader("parquet", "parquet", ("src/*",), _shard()),
    Reader("shards", "shards", ("shards/*",), _read_all, _right_sums),
    Reader("shards-verify", "shards", ("shards/*",), lambda f: biggan("index", f / "shards", "--verify"), _right_sums),
    Reader("shards-again", "shards", ("shards/*",), _shard("shards"), _right_sums),
    Reader("pack-half", "half_packed", ("shards/*",), _resume_pack),
    Reader(
        "pack-done", "packed_twice", ("shards/*",), lambda f: biggan("shard", f / "tree", f / "shards", "--resolution", "32")
    ),
    Reader("tars", "tars", ("src/*",), lambda folder: biggan("index", folder / "src")),
    Reader("import-biggan-pytorch", "biggan_pytorch", ("src/*",), _import),
    Reader("import-studiogan", "studiogan", ("src/*",), _import),
    Reader("import-huggingface", "huggingface", ("src/*",), _import),
    Reader("checkpoint-verify", "run", ("kept/*/*",), lambda f: biggan("checkpoint", "verify", f / "kept"), _right_commit),
    Reader("checkpoint-sample", "run", ("kept/*/*",), _sample("kept"), _right_commit),
    Reader("exported", "run", ("exported/*",), _sample("exported"), _right_weights),
)
"""Files of data sets, of models; and `run_readers` has those of runs and answers of servers."""
