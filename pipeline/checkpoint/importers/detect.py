"""Checkpoints of other projects: which one it is, and one way to read them all.

A format is a module with NAME, LOOKED_FOR, `find(names, options)` and `read(src, files, options, say)`.
"""

from collections.abc import Callable
from dataclasses import asdict

from pipeline import storage
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.importers import biggan_pytorch, huggingface, studiogan
from pipeline.checkpoint.importers.convert import Imported, Options, is_parameter
from pipeline.errors import ConfigError
from pipeline.storage.ownership import refuse_foreign
from pipeline.untrusted import parsing

FORMATS = (biggan_pytorch, studiogan, huggingface)


def read(src: str, options: Options, say: Callable[[str], None]) -> Imported:
    """The checkpoint in the folder `src` (a path or URI), in its own precision; `say` is told each file that is read.

    Raises ConfigError if no format fits, or if it is another architecture than those of `model.config`, or if a file would
    have to be run; DataError if a file is damaged or lacks tensors.
    """
    names = storage.names(src)
    for candidate in FORMATS:
        if files := candidate.find(names, options):
            with parsing(f"{src} cannot be read as {candidate.NAME}", "copy it again"):
                return candidate.read(src, files, options, say)
    if not names:
        raise ConfigError(f"{src} is no folder with files in it: name the folder that a checkpoint lies in")
    known = "; ".join(f"{candidate.NAME} has {candidate.LOOKED_FOR}" for candidate in FORMATS)
    there = ", ".join(names[:6]) + (", ..." if names[6:] else "")
    raise ConfigError(f"{src} is not a checkpoint that can be imported ({known}); it has {there}")


def check_empty(dst: str) -> None:
    """Raise ConfigError if `dst` holds anything."""
    refuse_foreign(f"DST {dst}", dst, "name a new folder")


def save(imported: Imported, dst: str) -> Checkpoint:
    """Commit `imported` below `dst` as a checkpoint of ours, in float32.

    Beside what a training saves it has `statistics`, and `ema_vectors`: u and v of the averaged generator, where it is not
    the generator itself. Raises ConfigError if `dst` is not empty.
    """
    check_empty(dst)
    ema = imported.ema
    parts = {
        "generator": imported.generator,
        "ema": {name: tensor for name, tensor in ema.items() if is_parameter(name)},
        "ema_vectors": {} if ema is imported.generator else {n: t for n, t in ema.items() if n.endswith((".u", ".v"))},
        "discriminator": imported.discriminator,
        **{f"{role}_optimizer": moments for role, moments in imported.optimizers.items()},
        "statistics": imported.statistics,
    }
    tensors = {name: {key: tensor.float() for key, tensor in part.items()} for name, part in parts.items() if part}
    state = {"model": asdict(imported.config), "classes": None, "source": imported.source}
    return pruning.save(dst, imported.progress, tensors, state, keep=2)
