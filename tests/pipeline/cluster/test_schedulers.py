"""Each scheduler's variables, as its documentation has them; what is missing, what is no number."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from pipeline.cluster.topology import PORT, Topology, find
from pipeline.errors import ConfigError
from tests.support.scheduler_variables import SCHEDULERS, VERTEX


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler(name: str) -> None:
    environ, expected = SCHEDULERS[name]
    assert find(environ) == expected


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("torchrun", "PET_NNODES PET_NODE_RANK PET_MASTER_ADDR"),
        ("TrainJob", "PET_NNODES PET_NODE_RANK PET_MASTER_ADDR"),
        ("SkyPilot", "SKYPILOT_NUM_NODES SKYPILOT_NODE_RANK SKYPILOT_NODE_IPS"),
        ("AWS Batch", " ".join(SCHEDULERS["AWS Batch"][0])),
        ("SageMaker", "SM_HOSTS SM_CURRENT_HOST"),
        ("JobSet", "NNODES MASTER_ADDR"),
        ("dstack", "DSTACK_NODES_NUM DSTACK_NODE_RANK DSTACK_MASTER_NODE_IP"),
        ("Slurm", "SLURM_NODEID SLURM_STEP_NUM_NODES SLURM_STEP_NUM_TASKS"),
        ("Azure ML", "WORLD_SIZE MASTER_ADDR"),
        ("RunPod", "MASTER_ADDR"),
        ("Volcano", "WORLD_SIZE RANK MASTER_ADDR"),
    ],
)
def test_a_variable_that_is_missing_is_named(name: str, needed: str) -> None:
    for missing in needed.split():
        with pytest.raises(ConfigError, match=rf"{missing}\b") as error:
            find({key: value for key, value in SCHEDULERS[name][0].items() if key != missing})
        assert "--nodes" in str(error.value) or "process_count" in str(error.value)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("Vertex AI", "SageMaker")])
@pytest.mark.parametrize("value", ["x", "-1", "2.0", "1:4", "3"])
def test_a_rank_or_number_of_nodes_that_makes_no_sense(name: str, value: str) -> None:
    environ, expected = SCHEDULERS[name]
    for variable in [key for key, is_now in environ.items() if is_now in ("2", "3")]:
        if value == environ[variable] or variable in ("SLURM_PROCID", "PET_NPROC_PER_NODE", "JOB_COMPLETION_INDEX", "RANK"):
            continue
        with pytest.raises(ConfigError, match=r"--nodes|LOCAL_RANK|Slurm job"):
            find(environ | {variable: value})
    assert expected.rank == 2


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"PET_NNODES": "1"}, "torchrun or Kubeflow"),
        ({"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.4"}, "SkyPilot"),
        ({"NNODES": "1", "JOB_COMPLETION_INDEX": "0"}, "JobSet"),
        ({"CLUSTER_SPEC": '{"cluster": {"workerpool0": ["a:1"]}, "task": {"type": "workerpool0", "index": 0}}'}, "Vertex AI"),
        ({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"}, "SageMaker"),
        ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1"}, "Slurm"),  # salloc, or a batch script
        ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_STEP_ID": "4294967290", "SLURM_NODEID": "0"}, "Slurm"),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NNODES": "2",
                "SLURM_STEP_ID": "3",
                "SLURM_STEP_NUM_NODES": "1",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            "Slurm",
        ),
    ],
)
def test_one_node_of_a_scheduler_is_a_single_machine(environ: dict[str, str], source: str) -> None:
    found = find(environ)
    assert found == Topology(nodes=1, rank=0, address="127.0.0.1", port=found.port, source=source, hosts=found.hosts)


def test_the_main_node_of_batch_is_not_told_its_address_and_need_not_be_number_0() -> None:
    environ = {name: value for name, value in SCHEDULERS["AWS Batch"][0].items() if "ADDRESS" not in name}
    main = find(environ | {"AWS_BATCH_JOB_NODE_INDEX": "0"})
    assert main.rank == 0 and main.address.count(".") == 3 and not main.address.startswith("127.")
    environ = SCHEDULERS["AWS Batch"][0] | {"AWS_BATCH_JOB_MAIN_NODE_INDEX": "1"}
    assert [find(environ | {"AWS_BATCH_JOB_NODE_INDEX": str(index)}).rank for index in (0, 1, 2)] == [2, 0, 1]


def test_sagemaker_without_its_toolkit_has_a_file(tmp_path: Path) -> None:
    file = tmp_path / "input/config/resourceconfig.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}')
    here = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    assert find(here) == Topology(nodes=2, rank=1, address="algo-1", port=PORT, source="SageMaker", hosts=("algo-1", "algo-2"))
    assert find(here | SCHEDULERS["SageMaker"][0]).nodes == 3  # the variables have the word
    for broken in ("[]", '{"hosts": []}', '{"hosts": ["algo-1"], "current_host": "algo-9"}', "{"):
        file.write_text(broken)
        with pytest.raises(ConfigError, match=r"resourceconfig\.json"):
            find(here)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": {"type": "workerpool2", "index": 0}}, "number 0 of workerpool2"),
        ({"cluster": {"workerpool0": ["a:1", "b:1"]}, "task": {"type": "workerpool0", "index": 0}}, "workerpool0 has 2"),
        ({"cluster": {"workerpool0": ["a"]}, "task": {"type": "workerpool0", "index": 0}}, "not as Vertex AI writes it"),
        ({"cluster": {}}, "not as Vertex AI writes it"),
        ({"task": None}, "not as Vertex AI writes it"),
        ({"task": {"type": "workerpool1", "index": 7}}, "node rank 8 of 3 nodes"),
    ],
)
def test_a_cluster_of_vertex_that_cannot_train(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find({"CLUSTER_SPEC": json.dumps(VERTEX | change)})
    with pytest.raises(ConfigError, match="CLUSTER_SPEC is no JSON"):
        find({"CLUSTER_SPEC": "{"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_STEP_ID": ""}, "this shell is one process of 4 nodes.*srun --ntasks-per-node=1 --nodes=4 biggan node"),
        ({"SLURM_STEP_ID": "4294967291"}, "this shell is one process of 4 nodes"),  # a batch script's
        ({"SLURM_STEP_NUM_TASKS": "24"}, "srun started 24 processes on 3 nodes.*--ntasks-per-node=1 --nodes=3"),
        ({"SLURM_NODEID": "3"}, "node rank 3 of 3"),
        ({"SLURM_NODEID": ""}, "SLURM_NODEID is not"),
        ({"SLURM_STEP_NODELIST": "gpu[02-03]"}, "3 nodes, but it names 2"),
        ({"SLURM_STEP_NODELIST": "gpu[02-"}, r"gpu\[02- is no list of nodes"),
    ],
)
def test_slurm_says_what_to_type(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find(SCHEDULERS["Slurm"][0] | change)


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("n1", "n1"),
        ("n1,other-7", "n1 other-7"),
        ("gpu[08-10,12]", "gpu08 gpu09 gpu10 gpu12"),
        ("a[1-2],b,c[007]x", "a1 a2 b c007x"),
        ("r[1-2]n[3,5]-ib", "r1n3-ib r1n5-ib r2n3-ib r2n5-ib"),
    ],
)
def test_lists_of_hosts(nodelist: str, hosts: str, tmp_path: Path) -> None:
    names = hosts.split()
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": nodelist}
    step |= {"SLURM_STEP_NUM_NODES": str(len(names)), "SLURM_STEP_NUM_TASKS": str(len(names))}
    if len(names) > 1:
        assert find(step).hosts == tuple(names)
        if shutil.which("scontrol"):
            assert find(step | {"PATH": os.environ["PATH"]}).hosts == tuple(names)


def test_scontrol_has_the_word_where_it_is_installed(tmp_path: Path) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[02-04]" ] && printf "x\\ny\\nz\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environ = SCHEDULERS["Slurm"][0] | {"PATH": str(tmp_path)}
    assert find(environ).hosts == ("x", "y", "z")
    program.write_text("#!/bin/sh\necho no slurm.conf >&2; exit 1\n")
    assert find(environ).hosts == ("gpu02", "gpu03", "gpu04")
