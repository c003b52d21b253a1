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
    local base before task=$1
    shift
    read -ra base <<<"${BASE:-configs/5b.yaml configs/$task.yaml}"
    say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
    before=$(latest)
    # Without --kill-on-bad-exit: a rank that ends leaves the others a minute for their last words
    # (and their last bytes), then they are ended.
    run_step srun --kill-on-bad-exit=0 --wait=60 "$PYTHON" sat_udpdiff/train.py \
        --base "${base[@]}" data.shards="$SHARDS" run.output="$RUN" "$@"
    if [[ $status != 0 ]]; then
        go_on_or_say_why "$before" "$task" "$@"
    fi
    exit "$status"
}

# Name of the newest checkpoint; nothing where there is none.
latest() { cat "$RUN/checkpoints/latest" 2>/dev/null || true; }

# Queue the job again where a signal of Slurm ended the step and another turn can get further; say
# why not otherwise, and what to type.
go_on_or_say_why() {
    local before=$1 saved="nothing was saved in this turn"
    shift
    if [[ $(latest) != "$before" ]]; then saved="saved as $(latest)"; fi
    # Also by its default action, before the ranks answer it (128 + 10 or 15).
    if [[ $status =~ ^($STOPPED|138|143)$ ]] && is_preempted; then
        requeue "Slurm takes the nodes for another job; $saved"
    elif [[ $signalled == 1 && $status =~ ^($STOPPED|138)$ && $(latest) == "$before" ]]; then
        # It would be queued for ever, and each turn would spend its time on starting.
        local when="before the first step"
        if [[ $status == 138 ]]; then when="before Python had imported what answers it"; fi
        say "SIGUSR1 came $when (status $status): $RUN/checkpoints/latest is as it was, and another" \
            "turn would end in the same way. Not queued again: --time has to be longer than the" \
            "start and the ten minutes of --signal together"
    elif [[ $signalled == 1 && $status == "$STOPPED" ]]; then
        requeue "stopped by SIGUSR1; $saved"
    elif [[ $status == "$STOPPED" ]]; then
        say "a signal that was sent by hand ended the step (status $status), no time limit and no" \
            "preemption; $saved. Not queued again"
    else
        local kept="there is no checkpoint yet"
        if [[ -n $(latest) ]]; then kept="the last whole checkpoint is kept"; fi
        say "the step ended with status $status; $kept"
        return
    fi
    say "To go on, type (and other options of sbatch, if you gave any):"
    echo "    $(command_of "$@")"
}

# Whether Slurm has told this job to make room, and nobody has cancelled it since. A signal that a
# user sends with scancel --signal leaves PreemptTime=None. SIGNALING is RUNNING, for a moment.
is_preempted() {
    local facts
    facts=$(scontrol show job "$SLURM_JOB_ID") || return 1
    [[ $facts =~ JobState=(RUNNING|SIGNALING) && $facts =~ \ PreemptTime=[0-9] ]]
}

# The command that began this job: the environment, and what differs from the script's options.
command_of() {
    local line option task=$1
    shift
    line=$(printf 'SHARDS=%q RUN=%q' "$SHARDS" "$RUN")
    if [[ -n "${BASE:-}" ]]; then line+=" BASE=${BASE@Q}"; fi
    if [[ "$PYTHON" != .venv/bin/python ]]; then line+=" PYTHON=${PYTHON@Q}"; fi
    line+=" sbatch"
    for option in "nodes=${SLURM_JOB_NUM_NODES:-}" "ntasks-per-node=${SLURM_NTASKS_PER_NODE:-}" \
        "gpus-per-node=${SLURM_GPUS_PER_NODE:-}" "cpus-per-task=${SLURM_CPUS_PER_TASK:-}"; do
        [[ $option == *= ]] || grep -qxF "#SBATCH --$option" "launch/$task.slurm" ||
            line+=" --$option"
    done
    echo "$line launch/$task.slurm$( (($# == 0)) || printf ' %q' "$@")"
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
    # A preemption brings the end nearer, so that SIGUSR1 may follow SIGTERM; it has no more to say.
    trap '' USR1
}

forward() {
    signalled=1
    say "SIGUSR1: the ranks are asked to save and to end"
    # Of the steps alone. A signal to srun itself would be counted as a wish to kill them.
    scancel --signal=USR1 "$SLURM_JOB_ID" || say "scancel failed: the ranks do not know of it"
}

# Queue this job again, for the reason $1; comes back where Slurm does not do it.
requeue() {
    # Said before: where it works, Slurm ends this shell.
    say "$1; asking Slurm to queue the job again"
    # Incomplete: a job that was cancelled in this moment stays so.
    if scontrol requeue Incomplete "$SLURM_JOB_ID"; then
        exit 0
    fi
    say "Slurm does not queue it again (sbatch --requeue, and the cluster, allow it)"
}
