#!/bin/bash
# A curation run on a Slurm cluster: starts Ray on all nodes of the job and `songmill curate` on the first.
#
#   export SONGS=/data/songs DATASET=/data/dataset SONGMILL_MODELS=/data/models
#   sbatch --nodes=8 --gpus-per-node=1 deploy/slurm.sh --profile full --set caption.engine=template
#
# What follows the script's name is handed to `songmill curate`. Songs, models and dataset must be on a file system that
# all nodes share. The job goes back into the queue when its time is up or a node of higher priority preempts it, and
# goes on from what is committed.
#SBATCH --job-name=songmill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail

: "${SONGS:?set it to the folder or manifest of songs}"
: "${DATASET:?set it to the folder of the dataset}"
port=6379
cores=$SLURM_CPUS_PER_TASK

# Only who has the token may use the cluster; srun hands it on with the environment.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token OMP_NUM_THREADS=1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_ADDRESS=$head:$port

# A step of its own for each node: one that dies takes none of the others along.
on() {
  local node=$1
  shift
  srun --overlap --no-kill --nodes=1 --ntasks=1 --cpus-per-task="$cores" --nodelist="$node" "$@"
}

on "$head" ray start --head --port="$port" --num-cpus="$cores" --block &
for _ in {1..30}; do  # until the head's own node has joined; its address answers before
  if python -c 'import ray; ray.init(log_to_driver=False)' > /dev/null 2>&1; then
    break
  fi
  sleep 2
done
for node in "${nodes[@]:1}"; do  # songmill uses them as they come
  on "$node" ray start --address="$RAY_ADDRESS" --num-cpus="$cores" --block &
done

# The driver runs on the first node, where this script runs too. It ends by itself on SIGTERM.
songmill curate "$SONGS" --out "$DATASET" "$@" &
driver=$!
requeue=false
trap 'requeue=true; kill -TERM "$driver"' USR1  # five minutes before the time is up
trap 'kill -TERM "$driver"' TERM                # cancelled, or preempted: then Slurm itself puts it back

# A signal ends `wait` early, so wait until the driver is gone.
status=0
while kill -0 "$driver" 2> /dev/null; do
  wait "$driver" && status=0 || status=$?
done
if $requeue && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
