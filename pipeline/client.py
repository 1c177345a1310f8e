"""A generator behind `mlflow models serve`, over HTTP. The file needs nothing but Python and `pipeline/errors.py`."""

import base64
import difflib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ConfigError, StorageError

MOST_ROWS = 1024
"""Images in one request, as in `pipeline.generator_pyfunc`."""


def is_server(uri: str) -> bool:
    """http://host:port, without a path behind it: that would be something stored there."""
    return re.fullmatch(r"https?://[^/]+/?", uri) is not None


class Client:
    """Asks the server at `url`. Raises ConfigError for what the model refuses, StorageError if the server does not answer."""

    def __init__(self, url: str, timeout: float = 600.0):
        self.url, self._timeout = url.rstrip("/"), timeout
        (answer,) = self._ask([0], {"format": "description"})
        if "description" not in answer:
            raise ConfigError(f"{self.url} serves a model that does not describe itself: it is none of `biggan register`")
        self.about: dict[str, Any] = json.loads(answer["description"])
        """`classes`, `images`, `weights_sha256`, `resolution`, `channels`, `params`."""

    def sample(self, class_ids: Sequence[int], *, start: int = 0, **params: Any) -> list[bytes]:
        """A PNG for each of `class_ids` [n]; image i is sample `start` + i of `seed`.

        `params` are those of the model's signature. MLflow would drop one that is misspelt, so it is refused here.
        """
        allowed = [name for name in self.about["params"] if name != "format"]
        for name in params:
            if name not in allowed:
                nearest = (difflib.get_close_matches(name, allowed, n=1) or [", ".join(allowed)])[0]
                raise ConfigError(f"{self.url}: the model has no parameter {name}; did you mean {nearest}?")
        pictures: list[bytes] = []
        for first in range(0, len(class_ids), MOST_ROWS):
            rows = self._ask(class_ids[first : first + MOST_ROWS], params | {"start": start + first})
            pictures += [base64.b64decode(row["png"]) for row in rows]
        return pictures

    def _ask(self, class_ids: Sequence[int], params: dict[str, Any]) -> list[dict[str, Any]]:
        given = {name: value for name, value in params.items() if value is not None}
        body = {"dataframe_split": {"columns": ["class_id"], "data": [[int(i)] for i in class_ids]}, "params": given}
        request = urllib.request.Request(
            f"{self.url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code != 400:
                raise StorageError(f"{self.url} answers {error.code} {error.reason}: {text[:200]!r}") from None
            message = json.loads(text).get("message", text) if text.startswith("{") else text
            raise ConfigError(f"{self.url}: {message.splitlines()[-1]}") from None  # before it, MLflow shows the request
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.url} does not answer as `mlflow models serve` does: {error}") from None
        rows: list[dict[str, Any]] = found["predictions"]
        return rows
