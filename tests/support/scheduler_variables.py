"""What each scheduler says to a node, as its documentation has it."""

import json

from pipeline.cluster.topology import PORT, Topology

VERTEX = {
    "cluster": {
        "workerpool0": ["cmle-training-workerpool0-ab-0:2222"],
        "workerpool1": ["cmle-training-workerpool1-ab-0:2222", "cmle-training-workerpool1-ab-1:2222"],
        "workerpool2": ["cmle-training-workerpool2-ab-0:2222"],
    },
    "environment": "cloud",
    "task": {"type": "workerpool1", "index": 1, "trial": ""},
}
IPS = "10.0.0.4\n10.0.0.5\n10.0.0.6"


def variables(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split())


# Node 2 of 3 in the eyes of each.
SCHEDULERS: dict[str, tuple[dict[str, str], Topology]] = {
    "torchrun": (
        variables("PET_NNODES=3 PET_NODE_RANK=2 PET_MASTER_ADDR=first PET_MASTER_PORT=1234"),
        Topology(3, 2, "first", 1234, "torchrun or Kubeflow"),
    ),
    "TrainJob": (
        variables("PET_NNODES=3 PET_NPROC_PER_NODE=8 PET_NODE_RANK=2 PET_MASTER_ADDR=gan-node-0-0.gan PET_MASTER_PORT=29500")
        | variables("JOB_COMPLETION_INDEX=2"),
        Topology(3, 2, "gan-node-0-0.gan", 29500, "torchrun or Kubeflow"),
    ),
    "PyTorchJob": (
        variables("MASTER_PORT=23456 PET_MASTER_PORT=23456 MASTER_ADDR=gan-master-0 PET_MASTER_ADDR=gan-master-0 WORLD_SIZE=24")
        | variables("RANK=2 PET_NODE_RANK=2 PET_NPROC_PER_NODE=8 PET_NNODES=3"),
        Topology(3, 2, "gan-master-0", 23456, "torchrun or Kubeflow"),
    ),
    "SkyPilot": (
        variables("SKYPILOT_NUM_NODES=3 SKYPILOT_NODE_RANK=2 SKYPILOT_NUM_GPUS_PER_NODE=8") | {"SKYPILOT_NODE_IPS": IPS},
        Topology(3, 2, "10.0.0.4", PORT, "SkyPilot", tuple(IPS.split())),
    ),
    "AWS Batch": (
        variables("AWS_BATCH_JOB_NUM_NODES=3 AWS_BATCH_JOB_NODE_INDEX=2 AWS_BATCH_JOB_MAIN_NODE_INDEX=0")
        | variables("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS=10.0.0.4"),
        Topology(3, 2, "10.0.0.4", PORT, "AWS Batch"),
    ),
    "SageMaker": (
        variables('SM_HOSTS=["algo-1","algo-2","algo-3"] SM_CURRENT_HOST=algo-3 SM_NUM_GPUS=8'),
        Topology(3, 2, "algo-1", PORT, "SageMaker", ("algo-1", "algo-2", "algo-3")),
    ),
    "Vertex AI": (
        {"CLUSTER_SPEC": json.dumps(VERTEX)},
        Topology(
            *(3, 2, "cmle-training-workerpool0-ab-0", 2222, "Vertex AI"),
            ("cmle-training-workerpool0-ab-0", "cmle-training-workerpool1-ab-0", "cmle-training-workerpool1-ab-1"),
        ),
    ),
    "JobSet": (
        variables("NNODES=3 JOB_COMPLETION_INDEX=2 MASTER_ADDR=gan-node-0-0.gan MASTER_PORT=29501"),
        Topology(3, 2, "gan-node-0-0.gan", 29501, "JobSet"),
    ),
    "dstack": (
        variables("DSTACK_NODES_NUM=3 DSTACK_NODE_RANK=2 DSTACK_MASTER_NODE_IP=10.0.0.4 DSTACK_GPUS_PER_NODE=8")
        | {"DSTACK_NODES_IPS": IPS},
        Topology(3, 2, "10.0.0.4", PORT, "dstack", tuple(IPS.split())),
    ),
    "Slurm": (
        variables("SLURM_JOB_ID=123456 SLURM_STEP_ID=0 SLURM_NNODES=4 SLURM_JOB_NODELIST=gpu[01-04] SLURM_STEP_NUM_NODES=3")
        | variables("SLURM_STEP_NUM_TASKS=3 SLURM_STEP_NODELIST=gpu[02-04] SLURM_NODEID=2 SLURM_PROCID=2"),
        Topology(3, 2, "gpu02", 26912, "Slurm", ("gpu02", "gpu03", "gpu04")),
    ),
    "Azure ML": (
        variables("AZUREML_NODE_COUNT=3 WORLD_SIZE=3 NODE_RANK=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=10.0.0.4 MASTER_PORT=6105"),
        Topology(3, 2, "10.0.0.4", 6105, "whoever set torch's variables"),
    ),
    "RunPod": (
        variables("NUM_NODES=3 NODE_RANK=2 NUM_TRAINERS=8 WORLD_SIZE=24 MASTER_ADDR=10.65.0.2 MASTER_PORT=29400"),
        Topology(3, 2, "10.65.0.2", 29400, "whoever set torch's variables"),
    ),
    "Volcano": (
        variables("WORLD_SIZE=3 RANK=2 MASTER_ADDR=gan-master-0.gan MASTER_PORT=23456"),
        Topology(3, 2, "gan-master-0.gan", 23456, "whoever set torch's variables"),
    ),
}
