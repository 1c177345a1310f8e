"""`biggan explore`: a page to play with a generator."""

import argparse
import errno
import re
import socket
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, StorageError
from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from pipeline.ui.explore_app import Subject
    from pipeline.ui.neighbours import Neighbours
    from pipeline.ui.renderer import Renderer

HELP = "open a page to play with a generator: samples, walks between them, the training images nearest to one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `biggan explore`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, a checkpoint or a folder of them, the folder of an exported model, models:/NAME@ALIAS, "
        "models:/NAME/VERSION or models:/NAME/latest, as for `biggan sample`",
    )
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="where the page is; 0: any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="of this machine; 0.0.0.0 lets in everybody who can reach it (default: %(default)s, only programs here)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer also under NAME, of a proxy in front of the page; an ssh tunnel needs none. May be repeated",
    )
    parser.add_argument("--data", metavar="URI", help="shards to look for nearest images in (default: those of the run)")
    parser.add_argument(
        "--neighbours", type=int, default=10_000, metavar="N", help="look at so many of their images (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", type=int, metavar="IMAGES", help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--standing", type=int, metavar="N", help="take batch-norm statistics over N samples, as for `biggan sample`"
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI|RUN",
        help="where models:/ is looked up: an MLflow URI, or a run's folder (default: $MLFLOW_TRACKING_URI)",
    )


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    _check(args)
    with _bound(args.host, args.port) as listener:  # before the model is loaded, which can take minutes
        page = subject(args)
        from pipeline.ui.explore_app import make_app
        from pipeline.ui.explore_server import hosts_of, make_server

        host, port = listener.getsockname()[:2]
        server = make_server(make_app(page, hosts_of(args.host, host, args.allow_host)))
        print(f"{args.model} is at http://{f'[{host}]' if ':' in host else host}:{port}/ until you press Ctrl-C", flush=True)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # uvicorn raises it anew when all is closed
        finally:
            if page.neighbours:
                page.neighbours.close()
            page.painter.close()


def _check(args: argparse.Namespace) -> None:
    for flag, value, least, most in (
        ("--port", args.port, 0, 65535),
        ("--neighbours", args.neighbours, 1, None),
        ("--standing", args.standing, 2, None),
    ):
        if value is not None and (value < least or (most is not None and value > most)):
            raise ConfigError(f"{flag} {value}: must be {f'from {least} to {most}' if most else f'at least {least}'}")
    for name in args.allow_host:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ConfigError(f"--allow-host {name}: name a host without scheme, port and path, such as jupyter.example.org")
    from pipeline.generation.model_address import serves

    if serves(args.model):
        raise ConfigError(
            f"{args.model} is a model server, which draws no walks: name the model that it serves, models:/NAME@ALIAS, "
            "or its exported folder"
        )
    for flag, value in (("--checkpoint", args.checkpoint), ("--standing", args.standing)):
        if value is not None and args.model.startswith(("models:/", "runs:/")):
            raise ConfigError(f"{flag} {value} goes only with a run's folder, a checkpoint or an exported model's folder")


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address. Raises ConfigError if it is not to be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except socket.gaierror:
        raise ConfigError(f"--host {host}: no such address; type one of this machine, such as 127.0.0.1") from None
    except PermissionError:
        raise ConfigError(f"--port {port}: ports below 1024 are the administrator's; type --port {port + 8000}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port} is in use by another program: type --port {port % 65535 + 1}, or --port 0 for one that is free"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host} is not an address of this machine; type 127.0.0.1 or 0.0.0.0") from None
        raise


def subject(args: argparse.Namespace) -> "Subject":
    """What the page is about. Raises ConfigError if MODEL or --data is not there."""
    from pipeline.ui.explore_app import Subject

    painter, flags = _painter(args)
    data, neighbours = _data(args, painter)
    return Subject(hide_secrets(args.model), tuple(map(hide_secrets, flags)), painter, hide_secrets(data), neighbours)


def _painter(args: argparse.Namespace) -> tuple["Renderer", list[str]]:
    """What draws, and the flags of `biggan sample` that name the same model."""
    from pipeline.ui.renderer import painter_of, registered_painter

    given = (("--checkpoint", args.checkpoint), ("--standing", args.standing), ("--tracking-uri", args.tracking_uri))
    flags = [part for flag, value in given if value is not None for part in (flag, str(value))]
    if args.model.startswith(("models:/", "runs:/")):
        from pipeline.registry import model_files, versions

        found: Any = model_files.load(args.model, versions.find_store(args.tracking_uri, args.model))
        model, version = found
        images, sha256 = model_files.images(version), version.tags["weights_sha256"]  # which `load` has compared
        return registered_painter(model.unwrap_python_model(), images, sha256), flags
    from pipeline.generation.load import load_generator

    return painter_of(load_generator(args.model, args.checkpoint, standing=args.standing), args.standing), flags


def _data(args: argparse.Namespace, painter: "Renderer") -> tuple[str, "Neighbours | None"]:
    """Where the training images are, and those to be searched; or why there are none."""
    from pathlib import Path

    from pipeline.data.dataset import load_data
    from pipeline.data.loader import DataConfig
    from pipeline.runs.run_folder import load_run_config
    from pipeline.runs.trusted_places import kept_data
    from pipeline.ui.neighbours import Neighbours

    if args.data:
        named = DataConfig(uri=args.data)
        return args.data, Neighbours(named, load_data(named), painter.config, args.neighbours)
    if not Path(args.model, "config.yaml").is_file():
        return "MODEL does not say where its training images are: start again with --data URI of their shards", None
    said = load_run_config(args.model)
    where = said.data.uri or ", ".join(part.uri for part in said.data.mix.values())
    try:
        config = kept_data(said)
        return where, Neighbours(config, load_data(config), painter.config, args.neighbours)
    except (ConfigError, StorageError) as error:  # the run may have been trained elsewhere: all else works without them
        return f"no training images at {where} ({error}): start again with --data URI of their shards", None
