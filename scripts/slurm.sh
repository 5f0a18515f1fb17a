#!/usr/bin/env bash
# One run on SLURM, on as many GPUs and nodes as stand below. Edit, then   sbatch scripts/slurm.sh model=resnet data=cifar10
# Two minutes before its time is up it saves and goes back into the queue, and then goes on in its folder, runs/slurm/<job>.
#SBATCH --job-name=gradflow
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# One task a GPU: for eight, --ntasks-per-node=8 and --gpus-per-node=8. The rest is as your cluster asks:
##SBATCH --partition=gpu
##SBATCH --account=…
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch: where tasks are bound, each would have one core.
exec srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} python src/train.py \
    trainer=ddp trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.num_nodes="$SLURM_NNODES" "$@" \
    resume=auto hydra.run.dir="runs/slurm/$SLURM_JOB_ID"
