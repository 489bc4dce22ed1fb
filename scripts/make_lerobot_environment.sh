#!/usr/bin/env bash
# Make a virtual environment with LeRobot 0.4.4, in which its tests run: scripts/make_lerobot_environment.sh [FOLDER]
# Takes Python 3.11 and about 2 GB, of which torch is half. Override with PYTHON=python3.11 TORCH=torch==2.13.0.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-.venv-lerobot}"
python="${PYTHON:-python3.11}"

test -d "$folder" || "$python" -m venv "$folder"
pip="$folder/bin/pip"
# Torch goes first and by version: left to itself, pip may fetch a build with gigabytes of CUDA libraries.
"$pip" install --quiet "${TORCH:-torch==2.13.0}"
"$pip" install --quiet -e . "beartype>=0.18" "pytest>=8" "pytest-timeout>=2.3"
"$pip" install --quiet --no-deps -r scripts/lerobot_environment.txt
"$folder/bin/python" -c "
from dsrl_offpolicy.base_policies.lerobot_library import lerobot_classes
print('LeRobot is ready:', lerobot_classes('base').DiffusionPolicy.__module__)"
