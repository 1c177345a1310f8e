"""The environment variables of ours, each with what it says. No other module of pipeline/ or jobs/ spells one."""

# For users to set.

HTTP_LOGINS = "BIGGAN_HTTP_LOGINS"
"""Addresses of web servers with their passwords or queries, separated by spaces (`pipeline.storage.logins`)."""
SERVER_TOKEN = "BIGGAN_SERVER_TOKEN"
"""The token that a served model is asked with."""
SITE = "BIGGAN_SITE"
"""A file with what differs between Slurm clusters: a copy of slurm/site.example.sh."""
TOKEN = "BIGGAN_TOKEN"
"""The token of a job on several nodes, the same on all of them: who knows it is one of them."""
METADATA_URL = "BIGGAN_METADATA_URL"
"""Base address of the cloud's metadata server, instead of the cloud's own."""

# From the launcher to its workers, or from `biggan submit` to a job; nobody sets these.

CONFIG = "BIGGAN_CONFIG"
"""The configuration of a job on AWS Batch, as text."""
LAUNCH_FOLDER = "BIGGAN_LAUNCH_FOLDER"
"""The launcher's own folder on this node, where it asks for a stop if RUN takes no file."""
MAIL = "BIGGAN_MAIL"
"""ADDRESS:PORT of the job's mailbox."""
PEERS = "BIGGAN_PEERS"
"""The file in which processes that share one command's work meet."""
PROGRESS = "BIGGAN_PROGRESS"
"""A file in which rank 0 keeps the number of images that it has trained on, as text."""
STATUS = "BIGGAN_STATUS"
"""A second place for a run's state, which the launcher can read when the run's disk is full."""
TRAIN_BEGAN = "BIGGAN_TRAIN_BEGAN"
"""When `biggan train` began, in seconds of this machine's monotonic clock."""
TRAIN_PID = "BIGGAN_TRAIN_PID"
"""The process that started `accelerate launch`."""
WORKING_DIRECTORY = "BIGGAN_WORKING_DIRECTORY"
"""Where the user has typed the command. Launcher and workers start in an empty folder instead."""

# Faults on demand, for tests and benchmarks.

FAIL_AT = "BIGGAN_FAIL_AT"
"""NAME:COUNT, or NAME:COUNT:RANK for one rank only: where a process ends itself (`pipeline.checkpoint.failpoints`)."""
INJECT_NAN = "BIGGAN_INJECT_NAN"
"""STEP:RANK[:TIMES]: which real images are spoilt (`pipeline.checkpoint.failpoints.NaNInjection`)."""
NODE_FAULT = "BIGGAN_NODE_FAULT"
"""NODE:KIND:VALUE, several with commas; NODE is a rank or a host (`pipeline.doctor.node.NodeFaultInjection`)."""
