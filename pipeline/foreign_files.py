"""Files of other projects: tensors and plain values come out, and nothing in a file is run.

A `.pth` or `.bin` is a pickle, which can name any function to call. These are read by torch's restricted unpickler, which
makes tensors, containers and plain values, and here also NumPy's numbers (metrics) and `nn.ReLU` (an option).
"""

import io
import pickle
import re
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.checkpoint import Tensors
from pipeline.errors import ConfigError, DataError

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
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
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


def _damaged(uri: str, error: Exception) -> DataError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return DataError(f"{uri} is damaged or cut short ({reason[:120]}): copy it again")


def as_tensors(uri: str, found: Any) -> Tensors:
    """`found` in `uri` as tensors by key, half precision widened. Raises ConfigError if it is something else."""
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{uri} holds no state_dict(), tensors by name: save one with torch.save(network.state_dict(), ...)")
    half = torch.float16, torch.bfloat16
    return {str(key): value.float() if value.dtype in half else value for key, value in found.items()}
