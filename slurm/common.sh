# What the scripts beside this file share; they run from the root of the repository.
PYTHON=${PYTHON:-.venv/bin/python}
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# srun with these words. When Slurm announces the end of the job (SIGUSR1 to this shell: --signal=B:USR1@120), the step
# is asked to leave, as srun passes signals on, and the job goes back into the queue: the same command goes on.
until_asked_to_leave() {
    local leaving='' code=0
    "$@" &
    local pid=$!
    trap 'leaving=yes; kill -USR1 "$pid"' USR1
    while :; do
        code=0
        wait "$pid" || code=$?
        kill -0 "$pid" 2>/dev/null || break # a signal ends the wait, not the command
    done
    if [ "$leaving" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
    return "$code"
}
