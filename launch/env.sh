# What all scripts of this folder share; they source it from the top of the repository.
# A variable that is set already stays as it is, so that a cluster's own choice wins.

# The Python that runs everything.
PYTHON="${PYTHON:-.venv/bin/python}"

# Threads of one rank. Unset, each rank takes one per core of the machine, and eight ranks fight.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# Since Slurm 22.05 srun no longer takes over --cpus-per-task of sbatch: ranks would share one core.
export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}"
# A log is a file, to which Python writes in blocks: the last words of a rank would come late.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"
# A rank that crashes in native code (SIGSEGV, SIGBUS, SIGABRT) prints where Python stood.
export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"
# NCCL says nothing about the cause of a failure unless asked to.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# Weights come from folders or the cache of a login node: hundreds of ranks at the hub's door at
# once are turned away, and most compute nodes see no network. 0 lets them ask.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
# The tokenizer's threads do not survive the processes that read data, and say so each time.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
# Not here, as they are right by themselves: MASTER_ADDR and MASTER_PORT (sat_udpdiff/distributed.py
# takes the first node and a port of the job), TORCH_NCCL_ASYNC_ERROR_HANDLING (on since torch 2.2:
# a rank that waits in vain ends), TORCH_EXTENSIONS_DIR (set where deepspeed is imported), WDS_SECURE
# (no address of data goes through webdataset). Which network NCCL and gloo take, the cluster knows:
# NCCL_SOCKET_IFNAME, NCCL_IB_HCA and GLOO_SOCKET_IFNAME pass through.

say() { echo "$(date '+%F %T') $*"; }

# The exit status of train.py that means: stopped by a signal, saved, the same command goes on.
STOPPED=75

# Train the task of configs/$1.yaml; further words are settings. Slurm's signal before the time
# limit reaches this shell; it goes to the ranks, which save and end, and the job is queued again.
# BASE names other value files.
train() {
    local task=$1 base
    shift
    read -ra base <<<"${BASE:-configs/5b.yaml configs/$task.yaml}"
    say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
    # Without --kill-on-bad-exit: a rank that ends leaves the others a minute for their last words
    # (and their last bytes), then they are ended.
    run_step srun --kill-on-bad-exit=0 --wait=60 "$PYTHON" sat_udpdiff/train.py \
        --base "${base[@]}" data.shards="$SHARDS" run.output="$RUN" "$@"
    if [[ $status == "$STOPPED" && $signalled == 1 ]]; then
        requeue "SHARDS=$SHARDS RUN=$RUN sbatch launch/$task.slurm $*"
    elif [[ $status != 0 ]]; then
        say "the step ended with status $status; the last whole checkpoint is kept"
    fi
    exit "$status"
}

# Run a command; SIGUSR1 to this shell becomes SIGUSR1 to the tasks of the job's steps. Sets
# `status` and `signalled`.
run_step() {
    signalled=0 status=0
    trap forward USR1
    "$@" &
    local pid=$!
    # A signal ends `wait` before the command is done.
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" || true
    done
    wait "$pid" || status=$?
    trap - USR1
}

forward() {
    signalled=1
    say "SIGUSR1: the ranks are asked to save and to end"
    # Of the steps alone. A signal to srun itself would be counted as a wish to kill them.
    scancel --signal=USR1 "$SLURM_JOB_ID" || say "scancel failed: the ranks do not know of it"
}

# Queue this job again, or say what to type.
requeue() {
    # Said before: where it works, Slurm ends this shell.
    say "stopped and saved; asking Slurm to queue the job again"
    if scontrol requeue "$SLURM_JOB_ID"; then
        exit 0
    fi
    say "Slurm does not queue it again (sbatch --requeue, and the cluster, allow it). To go on, type:"
    echo "    $1"
}
