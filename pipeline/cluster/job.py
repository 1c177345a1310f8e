"""What a cluster has to know of one training, and how it is put together from the run's configuration and a file of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipeline import variables
from pipeline.bounds import Bounds, check_bounds
from pipeline.errors import ConfigError
from pipeline.redaction import holds_secret, holds_value, is_secret_name

if TYPE_CHECKING:
    from pipeline.config import RunConfig

NODE = "node"
"""In Kubernetes, the part of a machine's name between the job's and its number."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("NNODES", "MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", variables.TOKEN)


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What a cluster has to know. Raises ValueError naming the field that it would refuse, or misunderstand."""

    name: str
    """Of the job, and within its names of machines: lower-case letters, digits and hyphens."""
    image: str
    """Container image, with a tag or, better, a digest."""
    config: str
    """The run's whole configuration as YAML. `run` is a folder below /scratch, `checkpoint.uri` an object store."""
    nodes: Annotated[int, Bounds(ge=1)] = 1
    """Machines."""
    gpus: Annotated[int, Bounds(ge=0)] = 8
    """GPUs of each; 0 for none."""
    gpu: str = ""
    """Their kind, as SkyPilot names it: H100. Kubernetes chooses by `node_selector`, AWS Batch by `instance_type`."""
    cpus: Annotated[int, Bounds(ge=0)] = 0
    """Cores of each machine to ask for; 0 asks for none. AWS Batch needs it."""
    memory_gb: Annotated[int, Bounds(ge=0)] = 0
    """Memory of each machine to ask for, in GiB; 0 asks for none. AWS Batch needs it."""
    shm_gb: Annotated[int, Bounds(ge=1)] = 64
    """Size of /dev/shm in GiB: what NCCL and the transforms' processes share."""
    scratch_gb: Annotated[int, Bounds(ge=1)] = 500
    """Local disk for the run's folder and the data's cache, in GiB."""
    grace: Annotated[int, Bounds(ge=1)] = 120
    """Seconds that a save may take when the machine is to be given back: `stop.grace`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables. Passwords do not belong here."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values the cluster keeps: keys of the Kubernetes Secret, or `sky --secret`."""
    secret: str = "biggan"
    """The Kubernetes Secret that holds them. AWS Batch: the parameter, by name or ARN, that holds the nodes' token."""
    queue: str = ""
    """Kueue's LocalQueue."""
    service_account: str = ""
    """Kubernetes service account: may be what the bucket trusts. AWS Batch: the job's role."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the Kubernetes nodes that it may run on, such as a kind of GPU, or spot machines."""
    instance_type: str = ""
    """AWS Batch's machines."""
    spot: bool = True
    """SkyPilot: machines that may be taken away. Elsewhere the queue or the nodes decide."""
    max_restarts: Annotated[int, Bounds(ge=0)] = 20
    """Restarts after crashes. Being preempted does not count."""
    port: Annotated[int, Bounds(ge=1, lt=65536)] = 29500
    """Where the first machine listens."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not _LABEL.fullmatch(self.name):
            raise ValueError(f"name={self.name}: lower-case letters, digits and hyphens, from a letter to no hyphen")
        longest = f"{self.name}-{NODE}-0-{self.nodes - 1}-abcde"
        if len(longest) > 63:
            raise ValueError(f"name={self.name}: {len(longest) - 63} characters too long for names as {longest}")
        if not re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", self.image) or self.image.endswith(":latest"):
            raise ValueError(
                f"image={self.image}: name a version, as in registry/biggan:1.0 or, better, registry/biggan@sha256:..."
            )
        for name in (*self.env, *self.secrets):
            if not _VARIABLE.fullmatch(name) or name in _OURS:
                raise ValueError(f"env.{name}: " + ("is set by the job" if name in _OURS else "is no name of a variable"))
        for name, value in self.env.items():
            if is_secret_name(name) or holds_secret(value):
                raise ValueError(f"env.{name}: manifests are no place for a password or key; name it in secrets")
        for name in ("image", "gpu", "queue", "service_account", "instance_type", "secret", "config"):
            if holds_value(getattr(self, name)):
                raise ValueError(f"{name}: manifests are no place for a password or key; leave it out")


@dataclass(frozen=True)
class _Strict(ClusterJob):
    """The same, where a key that does not exist is an error."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic's name and form


def describe(config: "RunConfig", file: Path, nodes: int, gpus: int | None) -> ClusterJob:
    """The training `config` as the job of a cluster that `file` describes: YAML of the fields of `ClusterJob`.

    On the cluster its folder is on each machine's own disk, below /scratch. Raises ConfigError for a configuration that would
    lose something with such a disk, for keys that do not exist, and for what a cluster would refuse.
    """
    import pydantic

    from pipeline.config import to_yaml
    from pipeline.config_tree import parse

    _refuse_local(config)
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.run).name.lower()).strip("-")
    inside = replace(config, run=f"/scratch/{name}")
    given = {"name": name, "config": to_yaml(inside), "nodes": nodes, "grace": config.stop.grace}
    try:
        known = parse(file.read_bytes(), ClusterJob, f"--cluster {file}")
    except OSError as error:
        raise ConfigError(f"--cluster {file}: {error.strerror}") from None
    if both := sorted(given.keys() & known.keys() - {"name"}):
        raise ConfigError(f"--cluster {file}: {both[0]} is no key of it: the run's configuration and --nodes decide that")
    wanted = given | known | ({} if gpus is None else {"gpus": gpus})
    try:
        return pydantic.TypeAdapter(_Strict).validate_python(wanted)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--cluster {file}: {f'{key}: ' if key else ''}{said}") from None


def _refuse_local(config: "RunConfig") -> None:
    """What is on the disk of one machine is on no other, and goes with it."""
    sets = {"data.uri": config.data.uri} | {f"data.mix.{name}.uri": part.uri for name, part in config.data.mix.items()}
    for key, uri in {"checkpoint.uri": config.checkpoint.uri, "init": config.init or "s3://", **sets}.items():
        if (uri or key == "checkpoint.uri") and not _is_remote(uri):
            raise ConfigError(f"{key}={uri or ''}: the machines have disks of their own; name a store: {key}=s3://bucket/...")
    if config.tracking.mode == "offline":
        raise ConfigError(
            "tracking.mode=offline: what waits for `biggan sync` would go with a machine's disk: set "
            "tracking.mode=auto or tracking.mode=off"
        )
    if config.tracking.mode == "auto" and not _is_remote(config.tracking.uri):
        raise ConfigError(
            f"tracking.uri={config.tracking.uri or ''}: MLflow's store would go with a machine's disk: set "
            "tracking.uri=https://... or tracking.mode=off"
        )


def _is_remote(uri: str | None) -> bool:
    return "://" in (uri or "") and not (uri or "").startswith(("file://", "sqlite://"))
