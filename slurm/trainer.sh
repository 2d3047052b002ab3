#!/bin/bash
# One node's part of a training run, started by srun on each: trainer.sh MAIN_NODE RECIPE CONFIG [recipe overrides]
# A process for each GPU of --gpus-per-node; without GPUs one.
set -euo pipefail
MAIN=$1 RECIPE=$2 CONFIG=$3
shift 3
PYTHON=${PYTHON:-.venv/bin/python}
PROCESSES=$((SLURM_STEP_NUM_NODES * ${SLURM_GPUS_ON_NODE:-1}))
TRAINER=$(sed -n 's/^trainer: *//p' "$RECIPE")
# processes.py passes SIGUSR1 on to the processes that train; accelerate launch would end by it, and they with it.
exec "$PYTHON" -I src/posttrain/processes.py "$PPID" \
    "$PYTHON" -m accelerate.commands.launch --config_file "$CONFIG" \
    --num_machines "$SLURM_STEP_NUM_NODES" --machine_rank "$SLURM_NODEID" --num_processes "$PROCESSES" \
    --main_process_ip "$MAIN" --main_process_port "${MAIN_PORT:-29500}" "src/$TRAINER.py" "$RECIPE" "$@"
