#!/bin/sh
# The steps that Dockerfile and biggan.def share: what constraints.txt pins, and this project, into a new environment at $1.
# Run it in the repository's root. TORCH_INDEX adds an index that has CPU wheels of torch; without it, torch brings CUDA.
set -eu

python3 -m venv "$1"
PATH=$1/bin:$PATH
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_CONSTRAINT="$PWD/constraints.txt"

pip install --upgrade pip setuptools
pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
# DeepSpeed comes as source, and its setup.py looks at torch: it shall find this one. None of its C++ is compiled, nor used.
DS_BUILD_OPS=0 pip install --no-build-isolation '.[s3,gpu]'
biggan --version
