"""Which node this is: nobody says it, several schedulers do, and flags that have the last word."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.topology import Flags, Topology, find, is_worker, without_launchers
from pipeline.errors import ConfigError
from tests.support.scheduler_variables import IPS, SCHEDULERS, variables


def test_nothing_at_all_is_a_single_machine_with_a_free_port() -> None:
    one = find({"HOME": "/root", "PATH": "/bin"})
    assert one == Topology(nodes=1, rank=0, address="127.0.0.1", port=one.port, source="a single machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", one.port))


def test_schedulers_that_agree_and_the_order_of_who_has_the_word() -> None:
    everybody: dict[str, str] = {}
    for name in ("Slurm", "dstack", "SageMaker", "SkyPilot", "Volcano"):
        everybody |= SCHEDULERS[name][0]
    assert find(everybody).source == "SkyPilot"
    assert find(everybody | SCHEDULERS["torchrun"][0]).source == "torchrun or Kubeflow"
    for gone in ("SKYPILOT", "SM", "DSTACK"):
        everybody = {name: value for name, value in everybody.items() if not name.startswith(gone)}
    assert find(everybody).source == "Slurm"
    assert find(everybody, Flags(2, 1, "here", 99)) == Topology(nodes=2, rank=1, address="here", port=99, source="--nodes")


def test_skypilot_on_slurm() -> None:
    slurm = variables("SLURM_JOB_ID=7 SLURM_NNODES=3 SLURM_JOB_NODELIST=gpu[01-03]")  # it unsets all of the step
    assert find(SCHEDULERS["SkyPilot"][0] | slurm) == SCHEDULERS["SkyPilot"][1]


@pytest.mark.parametrize(
    ("change", "one", "other"),
    [
        ({"SKYPILOT_NODE_RANK": "1"}, "SKYPILOT_NODE_RANK (node 1)", "SLURM_NODEID (node 2)"),
        (
            {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_IPS": IPS + "\n10.0.0.7"},
            "SKYPILOT_NUM_NODES (4 nodes)",
            "SLURM_NNODES (3 nodes)",
        ),
        ({"PET_NNODES": "1"}, "PET_NNODES (1 nodes)", "SKYPILOT_NUM_NODES (3 nodes)"),
        (
            SCHEDULERS["dstack"][0] | {"DSTACK_MASTER_NODE_IP": "10.9.9.9"},
            "SKYPILOT_NODE_IPS (10.0.0.4)",
            "DSTACK_MASTER_NODE_IP (10.9.9.9)",
        ),
    ],
)
def test_schedulers_that_contradict_each_other(change: dict[str, str], one: str, other: str) -> None:
    environ = SCHEDULERS["Slurm"][0] | SCHEDULERS["SkyPilot"][0] | change
    with pytest.raises(ConfigError) as error:
        find(environ)
    assert one in str(error.value) and other in str(error.value) and "--nodes" in str(error.value)
    assert find(environ, Flags(1)).nodes == 1  # the flags end it


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (Flags(rank=1), "--node-rank 1 without --nodes"),
        (Flags(nodes=2), "--nodes 2 without --node-rank"),
        (Flags(nodes=2, rank=0), "--nodes 2 without --main-address"),
        (Flags(nodes=2, rank=2, address="a"), "node rank 2 of 2 nodes: ranks go from 0 to 1"),
        (Flags(nodes=0), "0 nodes: must be at least 1"),
        (Flags(nodes=2, rank=-1, address="a"), "node rank -1"),
        (Flags(nodes=2, rank=1, address="a", port=70000), "port 70000"),
        (Flags(port=0), "port 0"),
    ],
)
def test_flags_that_make_no_sense(flags: Flags, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find({}, flags)


def test_flags_may_name_another_address_or_port_than_the_scheduler() -> None:
    found = find(SCHEDULERS["Slurm"][0], Flags(address="gpu02-ib", port=30000))
    assert (found.nodes, found.rank, found.address, found.port) == (3, 2, "gpu02-ib", 30000)


def test_a_process_of_torchrun_is_no_node() -> None:
    with pytest.raises(ConfigError, match="once for each node"):
        find({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "LOCAL_RANK": "0"})
    with pytest.raises(ConfigError, match="process_count_per_instance: 1"):
        find(SCHEDULERS["Azure ML"][0] | {"WORLD_SIZE": "24"})
    with pytest.raises(ConfigError, match="once for each node"):
        find(SCHEDULERS["Volcano"][0] | {"LOCAL_RANK": "1"})


def test_a_worker_has_all_of_a_launchers_variables(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    whole = dict.fromkeys(names, "0")
    assert is_worker(whole) and not is_worker({}) and not capsys.readouterr().err
    for name in names:
        assert not is_worker({**whole, name: ""})
        left = capsys.readouterr().err
        assert not left if name == "LOCAL_RANK" else f"LOCAL_RANK is set without {name}: it is left over" in left


def test_launchers_leave_nothing_to_the_next() -> None:
    stays = {"PATH": "/bin", "PETALS": "1", "MY_RANK": "1", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "2", "WORLD_SIZES": "1"}
    goes = {"PET_NNODES", "PET_SIGNALS_TO_HANDLE", "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"}
    goes |= {"WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NNODES"}
    goes |= {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_MAX_RESTARTS", "ACCELERATE_USE_FSDP", "FSDP_VERSION"}
    assert without_launchers(stays | dict.fromkeys(goes, "1")) == stays


@given(
    st.dictionaries(
        st.sampled_from(sorted({name for environ, _ in SCHEDULERS.values() for name in environ})), st.text("0123,-[]a")
    )
)
def test_whatever_is_set_there_is_an_answer_or_one_line(environ: dict[str, str]) -> None:
    try:
        found = find(environ)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= found.rank < found.nodes and 0 < found.port < 65536 and found.address
