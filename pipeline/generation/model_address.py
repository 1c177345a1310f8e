"""Whether MODEL of a command is in a registry, asked over HTTP, or stored there."""

import urllib.request
from functools import cache

from pipeline import storage
from pipeline.errors import UserError
from pipeline.generation.client import Client, NoServerError, is_server


def is_registered(model: str) -> bool:
    """Return whether `model` is for MLflow to find."""
    return model.startswith(("models:/", "runs:/"))


@cache
def serves(uri: str) -> bool:
    """Return whether a model server is to be asked at `uri`; not where a checkpoint or an exported model is stored.

    An HTTP address with a path can be either: it is asked once.
    """
    if is_server(uri) or not uri.startswith(("http://", "https://")):
        return is_server(uri)
    try:
        Client(uri)
    except NoServerError:
        return not _is_stored(uri)
    except UserError:  # said again where it is used
        pass
    return True


def _is_stored(uri: str) -> bool:
    """Whether a web server has the files there. Asked without the store's retries: a web server's no is final."""
    from pipeline.checkpoint.format import COMMIT
    from pipeline.generation.exported_model import EXPORTED

    for file in (COMMIT, *EXPORTED):
        try:
            urllib.request.urlopen(urllib.request.Request(storage.join(uri, file), method="HEAD"), timeout=30).close()
        except (OSError, ValueError):
            continue
        return True
    return False
