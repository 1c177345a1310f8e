"""`biggan submit`: a training becomes a job of a scheduler, after every mistake that can be found from here."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import variables
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.cluster.job import ClusterJob
    from pipeline.config import RunConfig

HELP = "hand a training to a cluster's scheduler"

_THEN = ("evaluate", "register")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    schedulers = parser.add_subparsers(title="schedulers", metavar="SCHEDULER", required=True)
    slurm = schedulers.add_parser("slurm", help="sbatch, from a login node", description="Submit slurm/train.sbatch.")
    _common(slurm)
    slurm.add_argument(
        "--time", metavar="T", help="limit of each start, as sbatch takes it: 24:00:00; ten minutes at least, hours are better"
    )
    slurm.add_argument(
        "--site",
        metavar="FILE",
        type=Path,
        default=os.environ.get(variables.SITE),
        help="what differs between clusters: a copy of slurm/site.example.sh (default: $BIGGAN_SITE)",
    )
    slurm.add_argument(
        "--then", metavar="A,B", default="", help="jobs that follow if the training ends well: evaluate, register"
    )
    slurm.set_defaults(submit=_slurm)
    jobset = schedulers.add_parser("jobset", help="Kubernetes, by kubectl", description="Submit a JobSet.")
    jobset.add_argument("--namespace", metavar="NS", help="of Kubernetes (default: kubectl's)")
    sky = schedulers.add_parser("skypilot", help="clouds, by sky jobs launch", description="Submit a managed job of SkyPilot.")
    for cloud in (jobset, sky):
        _common(cloud)
        cloud.add_argument(
            "--cluster",
            metavar="FILE",
            type=Path,
            required=True,
            help="image, GPUs, queue, secrets, ...: a copy of container/cluster.example.yaml",
        )
    jobset.set_defaults(submit=_jobset)
    sky.set_defaults(submit=_skypilot)


def _common(parser: argparse.ArgumentParser) -> None:
    """Arguments of every scheduler."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG; run= names the run"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, metavar="M", help="GPUs of each, with one process on each GPU")
    parser.add_argument("--dry-run", action="store_true", help="check, and print what would be submitted")


def run(args: argparse.Namespace) -> int | None:
    """See `jobs.cli.Command`."""
    for flag, value in (("--nodes", args.nodes), ("--gpus-per-node", args.gpus_per_node)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")
    return args.submit(args)


def _checked(args: argparse.Namespace) -> "RunConfig":
    """The resolved configuration, with the run's absolute folder; every mistake in it is found here."""
    from dataclasses import replace

    from pipeline.cluster import submission
    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    submission.refuse_secrets(config)
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", config.run):
        raise ConfigError(f"run={config.run!r} has a line break or control character, which Slurm would lose: name another run")
    config = submission.carry(config)
    submission.check(config, args.nodes, config.processes or args.gpus_per_node or 1)
    return replace(config, run=str(Path(config.run).absolute()))


def _slurm(args: argparse.Namespace) -> None:
    """Ask sbatch whether it would take the job, freeze what belongs to it, submit it and what follows."""
    from pipeline.cluster import slurm, submission

    slurm.require()
    then = [name for name in args.then.split(",") if name]
    if wrong := [name for name in then if name not in _THEN]:
        raise ConfigError(f"--then {','.join(wrong)}: there are {', '.join(_THEN)}")
    env = _environment(args.site)
    config = _checked(args)
    run = Path(config.run)
    resources = [f"--gpus-per-node={args.gpus_per_node}"] if args.gpus_per_node else []
    options = [*_options(run, "train"), f"--nodes={args.nodes}", *resources, *([f"--time={args.time}"] if args.time else [])]
    _refuse_second(run)
    starts = slurm.check([*options, str(_template("train")), config.run], env, _template("train").read_text())
    place = submission.folder(run)
    request = [*options, str(place / "train.sbatch"), str(place / "config.yaml")]  # which says all, the run's folder, too
    if args.dry_run:
        print(_template("train").read_text(), end="")
        print(f"\n# {starts}\n{shlex.join(['sbatch', *request])}")
        return
    with submission.submitted_alone(config):
        _refuse_second(run)
        names = ["train", *then]
        files = {f"{name}.sbatch": _template(name).read_text() for name in names}
        if args.site:
            files["site.sh"] = args.site.read_text(errors="surrogateescape")
            env[variables.SITE] = str(place / "site.sh")
        submission.freeze(place, config, files)
        job = slurm.submit(request, env)
        behind, following = job, {}
        for name in then:
            wait = [f"--dependency=afterok:{behind}", "--kill-on-invalid-dep=yes", *resources]
            behind = slurm.submit([*_options(run, name), *wait, str(place / f"{name}.sbatch"), str(run)], env)
            following[name] = behind
        log = str(run / "logs" / f"slurm-train-{job}.log")
        submission.record(place, submission.Submission(scheduler="slurm", job=job, nodes=args.nodes, log=log, then=following))
    after = "".join(f", then {name} as job {number}" for name, number in following.items())
    print(f"job {job}{after}: {starts}")
    print(f"  log     tail -f {log}\n  status  biggan status {run}\n  stop    biggan stop {run}")


def _jobset(args: argparse.Namespace) -> None:
    """A ConfigMap with the configuration and the JobSet that mounts it, created by kubectl."""
    from pipeline.cluster import job_specs
    from pipeline.messaging import job_token

    job = _described(args)
    text = job_specs.as_yaml(job_specs.config_map(job), job_specs.jobset(job))
    where = ["--namespace", args.namespace] if args.namespace else []
    create = ["kubectl", "create", *where, "--filename"]
    secret = job_specs.as_yaml(job_specs.token_secret(job, job_token.new())).encode()
    if not _hand_over(args, "jobset", job.name, text, create, after=([*create, "-"], secret)):
        return
    pods = shlex.join(["kubectl", *where, "logs", "--follow", "--prefix", "--max-log-requests", str(max(5, job.nodes))])
    print(f"  log     {pods} -l jobset.sigs.k8s.io/jobset-name={job.name}")
    print(f"  status  {shlex.join(['kubectl', *where, 'get', f'jobset/{job.name}'])}, biggan status {args.run_folder}")
    made = [f"jobset/{job.name}", f"configmap/{job.name}-config", f"secret/{job.name}-token"]
    print(f"  delete  {shlex.join(['kubectl', *where, 'delete', *made])}")


def _skypilot(args: argparse.Namespace) -> None:
    """A task, launched as a managed job, which SkyPilot recovers; it takes the secrets' values from this environment."""
    from pipeline.cluster import job_specs

    job = _described(args)
    if not args.dry_run and (unset := [name for name in job.secrets if not os.environ.get(name)]):
        raise ConfigError(f"secrets: {unset[0]} is not set here, and SkyPilot takes its value from here")
    secrets = [part for name in (*job.secrets, variables.TOKEN) for part in ("--secret", name)]
    text = job_specs.as_yaml(job_specs.skypilot(job))
    if not _hand_over(args, "skypilot", job.name, text, ["sky", "jobs", "launch", "--yes", "--detach-run", *secrets]):
        return
    print(f"  log     sky jobs logs --name {job.name}\n  status  sky jobs queue, biggan status {args.run_folder}")
    print(f"  cancel  sky jobs cancel --name {job.name}")


def _described(args: argparse.Namespace) -> "ClusterJob":
    """The job, after all checks; `args.run_folder` is the run's folder here, which keeps what is submitted."""
    from pipeline.cluster import job as cluster_job
    from pipeline.cluster import submission
    from pipeline.config import load_config

    config = load_config(args.config, args.overrides)
    submission.refuse_secrets(config)
    cluster_job.describe(config, args.cluster, args.nodes, args.gpus_per_node)  # its mistakes are found without any store
    args.config = submission.carry(config)
    job = cluster_job.describe(args.config, args.cluster, args.nodes, args.gpus_per_node)
    submission.check(args.config, args.nodes, args.config.processes or job.gpus or 1)
    args.run_folder = Path(args.config.run).absolute()
    return job


def _hand_over(
    args: argparse.Namespace,
    scheduler: str,
    name: str,
    text: str,
    command: list[str],
    after: tuple[list[str], bytes] | None = None,
) -> bool:
    """Freeze the manifest in RUN/submission and run `command` with it; False for a dry run. Raises ConfigError if refused.

    What is secret goes to the stdin of a command `after` that, and to no file.
    """
    from dataclasses import replace

    from pipeline.cluster import submission
    from pipeline.messaging import job_token

    file = submission.folder(args.run_folder) / f"{scheduler}.yaml"
    full = shlex.join([*command, str(file)])
    if args.dry_run:
        print(f"{text}\n# {full}")
        if after:
            print(f"# {shlex.join(after[0])}  # a Secret of a new token, which is kept nowhere else")
        return False
    with submission.submitted_alone(replace(args.config, run=str(args.run_folder))) as place:
        submission.freeze(place, args.config, {file.name: text})
        if not shutil.which(command[0]):
            raise ConfigError(f"{command[0]} is not installed here, so nothing was submitted; where it is: {full}")
        env = os.environ | {variables.TOKEN: os.environ.get(variables.TOKEN) or job_token.new()}  # for `sky --secret`
        for words, given in [([*command, str(file)], None), *([after] if after else [])]:
            if code := subprocess.run(words, input=given, env=env, check=False).returncode:
                typed = shlex.join(words)
                raise ConfigError(f"{command[0]} has refused, with exit code {code}: see above; the command was {typed}")
        submission.record(place, submission.Submission(scheduler=scheduler, job=name, nodes=args.nodes))
    return True


def _refuse_second(run: Path) -> None:
    from pipeline.cluster import submission

    if job := submission.queued(run):
        raise ConfigError(f"run={run} is {job}: `biggan stop {run}` first, or name another run")


def _options(run: Path, name: str) -> list[str]:
    logs = str(run / "logs").replace("%", "%%")  # Slurm replaces %j and the like, also in a run's name
    # Said here, it overrides SBATCH_EXPORT of a site, with which the job would not even find its site file.
    return [f"--job-name={run.name}-{name}", f"--output={logs}/slurm-{name}-%j.log", "--export=ALL"]


def _template(name: str) -> Path:
    """A batch script of ours: beside the packages in a checkout, below `share` where they were installed."""
    places = (Path(__file__).parent.parent / "slurm", Path(sysconfig.get_path("data"), "share", "biggan-pipeline", "slurm"))
    return next(path for place in places if (path := place / f"{name}.sbatch").is_file())


def _environment(site: Path | None) -> dict[str, str]:
    """Of sbatch, and so of the job: this one's, with this Python's commands, and what the site file makes of it."""
    from pipeline.cluster import slurm

    env = slurm.outside(os.environ) | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    if site is None:
        return env
    if not site.is_file():
        raise ConfigError(f"--site {site}: there is no such file; make one from {_template('train').parent}/site.example.sh")
    done = subprocess.run(
        ["bash", "-c", '. "$1" >&2 && exec env -0', "site", str(site.absolute())], env=env, capture_output=True, check=False
    )
    if done.returncode:
        said: Sequence[str] = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise ConfigError(f"--site {site}: fails with exit code {done.returncode}: {said[-1]}")
    return dict(row.split("=", 1) for row in done.stdout.decode(errors="surrogateescape").split("\0") if "=" in row)
