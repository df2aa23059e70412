"""The Slurm script of a run: any number of nodes, saved and queued again when it is preempted.

Slurm sends USR1 before it takes the nodes away; the script hands it to the workers, which save and
leave, and then puts the job back into the queue, where it goes on with `--resume`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

WARNING_S = 90  # between USR1 and the end: a step, a checkpoint, and the end of all processes

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --ntasks-per-node=1
{resources}
#SBATCH --signal=B:USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
{options}
# Made by emtrain --slurm. One torchrun per node starts the workers of that node.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
again=()
[ -e {config} ] && again=(--resume)

asked=
trap 'asked=yes; kill -USR1 "$step"' USR1
trap 'asked=; kill -TERM "$step"' TERM
srun --kill-on-bad-exit=1 {python} -m torch.distributed.run \\
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={processes} --max-restarts=3 \\
    --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" --rdzv-backend=c10d \\
    --rdzv-endpoint="$first:$port" \\
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \\
    -m em_train.cli {arguments} "${{again[@]}}" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # a trap ends wait before the step has ended
    wait "$step"
    code=$?
done
if [ -n "$asked" ] && [ "$code" -ne 0 ] && [ -e {config} ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
"""


def script(
    arguments: Sequence[str],
    path: Path,
    *,
    gpus: int | None,
    processes: int,
    options: Sequence[str] = (),
) -> str:
    """An sbatch script that runs `emtrain` with the arguments on all processes of all its nodes.

    Args:
        arguments: of `emtrain`, without those that choose processes.
        gpus: GPUs per node, None on the CPU.
        processes: workers per node.
        options: further options of sbatch, such as `--nodes=4` or `--time=24:00:00`.
    """
    for word in (str(path), *options):
        if not word.isprintable():
            raise ValueError(
                f"{word!r} has a control character, which cannot stand in a line of a Slurm script; choose "
                "another --out or --sbatch"
            )
    per_node = f"--gpus-per-node={gpus}" if gpus else f"--cpus-per-task={processes}"
    return SCRIPT.format(
        name=_quoted(path.name),
        resources=f"#SBATCH {per_node}",
        warning=WARNING_S,
        log=_quoted(f"{path.parent}/{path.name}.slurm.txt".replace("%", "%%")),
        options="".join(f"#SBATCH {option}\n" for option in options),
        config=shlex.quote(str(path / "config.json")),
        python=shlex.quote(sys.executable),
        processes=processes,
        arguments=shlex.join([*arguments, "--out", str(path)]),
    )


def _quoted(text: str) -> str:
    """A value in a line #SBATCH: sbatch reads quotes as a shell does, but also `\\` within them."""
    if re.fullmatch(r"[\w/.,%@+-]+", text, re.ASCII):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
