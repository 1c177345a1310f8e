"""Files of other projects: tensors and plain values come out, and nothing in a file is run.

A `.pth` or `.bin` is a pickle, which can name any function to call. These are read by torch's restricted unpickler, which
makes tensors, containers and plain values, and here also NumPy's numbers (metrics) and `nn.ReLU` (an option).
"""

import io
import pickle
import re
import zipfile
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.checkpoint.finite_weights import not_finite
from pipeline.checkpoint.format import Tensors
from pipeline.errors import ConfigError, DataError
from pipeline.wording import printable

# NumPy moved the function once; files name either place.
_SCALAR = "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"
_HARMLESS: list[Any] = [
    *((np._core.multiarray.scalar, name) for name in _SCALAR),  # type: ignore[attr-defined]
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    nn.ReLU,
]


_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""A number that begins each file of torch.save before torch 1.6, inside a pickle of its own."""


class CodeError(ConfigError):
    """A file would have to be run to be read."""


def read_file(uri: str) -> Any:
    """What `torch.save` or safetensors wrote to `uri`, on the CPU.

    Raises CodeError if that takes more than tensors and plain values, DataError if the file is damaged, StorageError.
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        _check_form(uri, data)
        with torch.serialization.safe_globals(_HARMLESS):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (ConfigError, DataError):
        raise
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)|persistent_load|Can only build", str(error))
        if code is None:
            raise _damaged(uri, error) from None
        raise CodeError(
            f"{uri} is refused: it calls {code[1] or 'classes of its own'}, and a file of weights has no need to; save its "
            "state_dict() alone, where you trust it"
        ) from None
    except Exception as error:  # anything at all, at some byte where a pickle breaks off
        raise _damaged(uri, error) from None
    _check_sizes(uri, found, len(data))
    return found


def _check_sizes(uri: str, found: Any, size: int) -> None:
    """Raises DataError if the tensors in `found` are more than the `size` bytes of their file: copies would be far larger."""
    asked, left, seen = 0, [found], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            asked += one.numel() * one.itemsize
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, dict) else one
    if asked > size:
        raise DataError(
            f"{uri} has {size:,} bytes and tensors of {asked:,}: some are views of the same numbers, or sparse. Save copies, "
            "with torch.save({name: tensor.clone() for name, tensor in network.state_dict().items()}, FILE)"
        )


def _check_form(uri: str, data: bytes) -> None:
    """Check the sums of a zip's members, which torch does not. Raises ConfigError for a file that torch.save did not write."""
    if data.startswith(b"PK\x03\x04"):
        zipped = zipfile.ZipFile(io.BytesIO(data))
        if sum(member.file_size for member in zipped.infolist()) > len(data):
            raise DataError(f"{uri} is compressed or damaged, and torch.save does not compress: copy it again")
        if member := zipped.testzip():
            raise DataError(f"{uri} is damaged (the checksum of {member} is wrong): copy it again")
    elif data.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{uri} is a pointer of Git LFS and not the weights: fetch them with `git lfs pull`")
    elif data[:1] == b"\x80" and len(data) > 32 and _LEGACY not in data[:32]:
        raise ConfigError(
            f"{uri} is a plain pickle, which can run code when it is read: load it where you trust it, and save the tensors "
            "with torch.save(network.state_dict(), FILE)"
        )


def _damaged(uri: str, error: Exception) -> DataError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # torch begins with advice on its own options.
    reason = next((line for line in lines if "Unpickler error" in line), lines[0]).strip()
    return DataError(f"{uri} is damaged or cut short ({reason[:120]}): copy it again")


def as_tensors(uri: str, found: Any) -> Tensors:
    """Return `found` in `uri` as tensors by key, half precision widened.

    Raises ConfigError if it is something else than tensors of floating-point numbers, DataError if some are NaN or infinite.
    """
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{uri} holds no state_dict(), tensors by name: save one with torch.save(network.state_dict(), ...)")
    tensors: Tensors = {}
    for key, value in found.items():
        if len(str(key)) > 200 or not str(key).isprintable():  # they are part of messages
            raise ConfigError(f"{uri} has a tensor {printable(str(key)[:60])}: no network here has such names")
        if value.layout != torch.strided or (value.numel() > 1 and not value.is_floating_point()):
            kind = "a sparse tensor" if value.is_sparse else f"a tensor of {str(value.dtype).removeprefix('torch.')}"
            raise ConfigError(f"{uri}: {key} is {kind}: save plain floating-point weights, neither quantized nor pruned")
        narrow = value.is_floating_point() and value.dtype not in (torch.float32, torch.float64)
        tensors[str(key)] = value.float() if narrow else value
    refuse_broken(uri, tensors)
    return tensors


def refuse_broken(uri: str, tensors: Tensors) -> None:
    """Raises DataError if there are numbers that are NaN or infinite."""
    if broken := not_finite(tensors):
        raise DataError(f"{uri} has {broken}: import a checkpoint from before the training diverged")
