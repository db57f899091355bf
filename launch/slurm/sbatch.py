"""A batch script that trains on GPUs, saves before its time is over, and queues itself again."""

from __future__ import annotations

import dataclasses
import shlex
from string import Template

from launch.commands import TRAIN, check_name

# srun ends with the highest exit code of its tasks; those that it ends itself have up to 192.
GIVEN_UP = 200


@dataclasses.dataclass(frozen=True)
class SlurmRun:
    """A run on SLURM. `per`: one process a "node" (it has all its GPUs), or a "gpu". `notice`:
    seconds before the end at which the run is told to save its state. `prologue`: shell lines to
    come first, such as `module load cuda`."""

    name: str
    workdir: str
    arguments: tuple[str, ...]
    nodes: int = 1
    gpus: int = 8
    per: str = "node"
    cpus: int = 8
    time: str = "24:00:00"
    notice: int = 300
    requeues: int = 100
    partition: str | None = None
    account: str | None = None
    python: str = ".venv/bin/python"
    prologue: tuple[str, ...] = ()

    def __post_init__(self):
        check_name(self.name)
        if self.per not in ("node", "gpu"):
            raise ValueError(f"--per is {self.per!r}, expected node or gpu")


SCRIPT = Template("""\
#!/bin/bash
$options
set -uo pipefail
$prologue
stopped=
on_term() { stopped=1; scancel --signal=TERM "$$SLURM_JOB_ID"; }
trap on_term TERM

srun --kill-on-bad-exit=1 \\
  $command &
step=$$!
wait "$$step"
code=$$?
if [ -n "$$stopped" ]; then  # the signal ended the first wait
  wait "$$step"
  code=$$?
fi

case "$$code" in
  0 | $given_up) exit "$$code" ;;  # done, or what starting again cannot mend
esac
if [ "$${SLURM_RESTART_COUNT:-0}" -lt $requeues ]; then
  echo "ended with exit code $$code: queued again"
  scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
""")


def sbatch(run: SlurmRun) -> str:
    """The script's text."""
    tasks = 1 if run.per == "node" else run.gpus
    options = {
        "job-name": run.name,
        "partition": run.partition,
        "account": run.account,
        "nodes": run.nodes,
        "ntasks-per-node": tasks,
        # Not bound to tasks: JAX gives a task the GPU of its local number.
        "gpus-per-node": run.gpus,
        "cpus-per-task": run.cpus,
        "time": run.time,
        "signal": f"B:TERM@{run.notice}",
        "requeue": True,
        "open-mode": "append",
        "output": f"{run.name}-%j.log",
    }
    lines = [
        f"#SBATCH --{key}" + ("" if value is True else f"={value}")
        for key, value in options.items()
        if value is not None
    ]
    prologue = list(run.prologue)
    if run.per == "node":  # or JAX would take one GPU a task
        prologue.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(run.gpus)))}")
    # All tasks begin again together, so their watchdogs restart nothing.
    watchdog = [run.python, "-m", "launch.watchdog", "--restarts=0"]
    watchdog += [f"--given-up-code={GIVEN_UP}"]
    watchdog += [f"--heartbeat={run.workdir}/heartbeat", f"--grace={max(run.notice - 30, 1)}", "--"]
    train = [run.python, "-m", TRAIN, *run.arguments, f"--workdir={run.workdir}"]
    return SCRIPT.substitute(
        options="\n".join(lines),
        prologue="\n".join(prologue),
        command=f"{shlex.join(watchdog)} \\\n  {shlex.join(train)}",
        given_up=GIVEN_UP,
        requeues=run.requeues,
    )
