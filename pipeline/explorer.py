"""The page of `biggan explore`: one HTML file, and what it asks for as JSON."""

import base64
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from pipeline.errors import ConfigError, UserError
from pipeline.generators import parse_truncation
from pipeline.images import png
from pipeline.neighbours import Neighbours
from pipeline.painter import Painter, Point

_MOST_SAMPLES = 64  # what one batch of `biggan sample` holds, so that both draw the same bytes
_MOST_STEPS, _MOST_NEIGHBOURS = 32, 32
_LAST_SEED = 2**63 - 1  # of MLflow's `long`, the seed of a registered model


@dataclass(frozen=True)
class Subject:
    """What the page is about."""

    name: str
    """MODEL as it was typed."""
    flags: tuple[str, ...]
    """Those of `biggan sample` that name the same model."""
    painter: Painter
    data: str
    """Where the training images are, or why there are none."""
    neighbours: Neighbours | None


def make_app(subject: Subject) -> Starlette:
    """Answers to GET /, /api/model, /api/samples, /api/walk and /api/nearest.

    Bad input is status 400, an index in the making 202, storage that fails 503; each error is {"error": one line}, with the
    `parameter` that does not fit.
    """

    def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("explorer.html"))

    def answer(handler: Callable[[Subject, "_Query"], tuple[int, dict[str, Any]]]) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            query = _Query(request.query_params, subject.painter.classes)
            status, content = handler(subject, query)
            return JSONResponse(content, status, headers={"Cache-Control": "no-store"})

        return respond

    routes = [Route("/", page)]
    handlers = {"model": _model, "samples": _samples, "walk": _walk, "nearest": _nearest}
    routes += [Route(f"/api/{name}", answer(handler)) for name, handler in handlers.items()]
    return Starlette(routes=routes, exception_handlers={UserError: _refused, HTTPException: _unknown})


def _refused(request: Request, error: Exception) -> Response:
    content = {"error": str(error)} | ({"parameter": error.parameter} if isinstance(error, _ParameterError) else {})
    return JSONResponse(content, 400 if isinstance(error, ConfigError) else 503)


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)


class _ParameterError(ConfigError):
    """A parameter that does not fit; the page marks its field."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class _Query:
    """The parameters of a request. Every method raises _ParameterError with the parameter's name."""

    def __init__(self, given: Mapping[str, str], classes: tuple[str, ...]) -> None:
        self._given, self._classes = given, classes
        self._left = set(given)

    def whole(self, name: str, least: int, most: int, default: int) -> int:
        text = self._take(name) or str(default)
        if not text.isdecimal() or not least <= int(text) <= most:
            raise _ParameterError(name, f"{name} {text!r}: must be a whole number from {least:,} to {most:,}")
        return int(text)

    def truncation(self) -> float | None:
        try:
            return parse_truncation(self._take("truncation") or "none", "truncation")
        except ConfigError as error:
            raise _ParameterError("truncation", str(error)) from None

    def label(self, name: str) -> int | None:
        """A class by its name or number; None if nothing is given."""
        text = self._take(name)
        if not text:
            return None
        if text in self._classes:
            return self._classes.index(text)
        if text.isdecimal() and int(text) < len(self._classes):
            return int(text)
        names = ", ".join(self._classes[:5]) + (", ..." if len(self._classes) > 5 else "")
        message = f"{name} {text!r}: no such class; the model has 0 to {len(self._classes) - 1}: {names}"
        raise _ParameterError(name, message)

    def point(self, prefix: str) -> Point:
        label = self.label(f"{prefix}class")
        if label is None:
            raise _ParameterError(f"{prefix}class", f"{prefix}class is missing: name one of the model's {len(self._classes):,}")
        seed = self.whole(f"{prefix}seed", 0, _LAST_SEED, 0)
        return Point(label, seed, self.whole(f"{prefix}sample", 0, _MOST_SAMPLES - 1, 0))

    def end(self) -> None:
        """Raises ConfigError for parameters that nobody has asked for."""
        if self._left:
            raise _ParameterError(min(self._left), f"{min(self._left)}: no such parameter")

    def _take(self, name: str) -> str:
        self._left.discard(name)
        return self._given.get(name, "").strip()


def _model(subject: Subject, query: _Query) -> tuple[int, dict[str, Any]]:
    query.end()
    painter, known = subject.painter, subject.neighbours
    return 200, {
        "name": subject.name,
        "network": painter.config.generator,
        "resolution": painter.config.resolution,
        "images": painter.images,
        "weights_sha256": painter.weights_sha256,
        "classes": painter.classes,
        "data": subject.data,
        "neighbours": known and {"samples": known.samples, "total": known.total},
        "most": {"count": _MOST_SAMPLES, "steps": _MOST_STEPS},
    }


def _samples(subject: Subject, query: _Query) -> tuple[int, dict[str, Any]]:
    label, seed = query.label("class"), query.whole("seed", 0, _LAST_SEED, 0)
    truncation, count = query.truncation(), query.whole("count", 1, _MOST_SAMPLES, 20)
    query.end()
    classes = subject.painter.classes
    labels = [i % len(classes) if label is None else label for i in range(count)]
    images = subject.painter.samples(labels, seed, truncation)
    flags = ["--count", str(count), "--seed", str(seed), *subject.flags]
    if label is not None:
        flags += ["--classes", str(label) if "," in classes[label] else classes[label]]
    if truncation is not None:
        flags += ["--truncation", f"{truncation:g}"]
    return 200, {
        "images": [
            {"png": _png(image), "class": classes[label], "sample": i}
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ],
        "command": shlex.join(["biggan", "sample", subject.name, "set/", *flags]),
    }


def _walk(subject: Subject, query: _Query) -> tuple[int, dict[str, Any]]:
    start, end = query.point("from_"), query.point("to_")
    truncation, steps = query.truncation(), query.whole("steps", 2, _MOST_STEPS, 9)
    query.end()
    return 200, {"images": [{"png": _png(image)} for image in subject.painter.walk(start, end, steps, truncation)]}


def _nearest(subject: Subject, query: _Query) -> tuple[int, dict[str, Any]]:
    point, truncation, count = query.point(""), query.truncation(), query.whole("count", 1, _MOST_NEIGHBOURS, 8)
    query.end()
    known = subject.neighbours
    if known is None:
        raise ConfigError(subject.data)
    if not known.ready():
        return 202, {"done": known.done, "total": known.total}
    image = subject.painter.sample(point, truncation)
    return 200, {
        "image": {"png": _png(image)},
        "nearest": [
            {"png": _png(found.image), "class": known.classes[found.label], "distance": round(found.distance, 2)}
            for found in known.nearest(image, count)
        ],
        "how": f"Nearest of {known.count:,} of the {known.samples:,} training images, by pixel distance at {known.side} × "
        f"{known.side}: the root mean square of the differences, of 255 levels.",
    }


def _png(image: Tensor) -> str:
    """uint8 [C, r, r] -> base64 of a PNG."""
    return base64.b64encode(png(image.permute(1, 2, 0).contiguous().numpy())).decode()
