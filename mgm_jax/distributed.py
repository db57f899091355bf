"""How a process finds the others of its run: by our variables, or by what the cluster says.

`MGM_COORDINATOR` (host:port), `MGM_PROCESSES` and `MGM_PROCESS` join processes by hand (so does
`launch.local_multiprocess`). On TPU pods, GKE, SLURM, Kubernetes and Open MPI, JAX finds all that
itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

COORDINATOR, PROCESSES, PROCESS = "MGM_COORDINATOR", "MGM_PROCESSES", "MGM_PROCESS"
# What a collective, or a wait for the others, says when one of them has gone.
LOST = "Gloo|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|heartbeat|[Cc]onnection"
STOPPED = 75  # exit code of a run that is not done and can go on: EX_TEMPFAIL of sysexits.h


class DistributedError(ValueError):
    """Processes that cannot be joined: says which variable or cluster, and what to do."""


def _tpu(env: Mapping[str, str]) -> bool:
    """A TPU host. `import jax` leaves TPU_ML_PLATFORM where it has found chips and libtpu, and
    TPU_SKIP_MDS_QUERY where it has not; that is also set where nobody answers for the pod."""
    if "tpu" not in env.get("JAX_PLATFORMS", "tpu").split(","):
        return False
    hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
    several = len(hosts.split(",")) > 1 or _number(env, "MEGASCALE_NUM_SLICES") > 1
    return several or ("TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env)


def _slurm(env: Mapping[str, str]) -> bool:
    """A task of a step of several; a shell of `salloc` is none."""
    named = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    return all(n in env for n in named) and _number(env, "SLURM_NTASKS") > 1


def _kubernetes(env: Mapping[str, str]) -> bool:
    """A pod of an indexed Job; those of GKE's TPU hosts know their neighbours otherwise."""
    return (
        {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(env)
        and "TPU_WORKER_HOSTNAMES" not in env
        and "TPU_PROCESS_ADDRESSES" not in env
    )


def _open_mpi(env: Mapping[str, str]) -> bool:
    return "OMPI_MCA_orte_hnp_uri" in env and _number(env, "OMPI_COMM_WORLD_SIZE") > 1


# What JAX can join by itself, and how it is recognised.
CLUSTERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "TPU": _tpu,
    "SLURM": _slurm,
    "Kubernetes": _kubernetes,
    "Open MPI": _open_mpi,
}


def cluster(env: Mapping[str, str]) -> str | None:
    """Which of `CLUSTERS` the environment is of."""
    return next((name for name, recognised in CLUSTERS.items() if recognised(env)), None)


def settings(env: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize`: ours, none (JAX finds them), or None: do not call.

    DistributedError for variables of ours that are missing or not what they should be.
    """
    given = [name for name in (COORDINATOR, PROCESSES, PROCESS) if name in env]
    if not given:
        return None if cluster(env) is None else {}
    for name in (COORDINATOR, PROCESSES, PROCESS):
        if name not in env:
            raise DistributedError(f"{name} is not set but {given[0]} is; set all three or none")
    host, _, port = env[COORDINATOR].rpartition(":")
    if not host or not port.isdecimal():
        raise DistributedError(f"{COORDINATOR} is {env[COORDINATOR]!r}, expected host:port")
    count, process = _number(env, PROCESSES), _number(env, PROCESS)
    if not 0 <= process < count:
        raise DistributedError(f"{PROCESS} is {process}, expected 0 to {count - 1} ({PROCESSES})")
    return {"coordinator_address": env[COORDINATOR], "num_processes": count, "process_id": process}


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name) or "0"
    if not text.isdecimal():
        raise DistributedError(f"{name} is {text!r}, expected a whole number")
    return int(text)


def initialize() -> None:
    """Joins the processes of the run, if there are several; to be called before anything of JAX.

    DistributedError when they do not come together.
    """
    import jax  # which adds to the environment what it has found

    found = settings(os.environ)
    if found is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**found)
    except (ValueError, RuntimeError) as error:
        whose = f"{COORDINATOR} {os.environ.get(COORDINATOR)}" if found else cluster(os.environ)
        why = " ".join(str(error).split())
        raise DistributedError(
            f"the processes of this run did not come together by {whose} ({why}); start it on "
            "every host, and let every host reach the first one"
        ) from error


# ------------------------------------------------------------------------------ in step with others


def first_process_does(work: Callable[[], object]) -> None:
    """Process 0 works while the others wait; they all fail if it does (OSError, ValueError)."""
    import jax

    error = None
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, ValueError) as e:
            error = e
    failed = anywhere(error is not None)
    if error:
        raise error
    if failed:
        raise OSError("process 0 could not do it; its own message says why")


def anywhere(flag: bool) -> bool:
    """Whether any process says so. All of them call it, at the same point, and wait."""
    import jax

    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def leave(code: int, line: str) -> NoReturn:
    """Ends this process with a line, at once: the usual end waits minutes for the other processes,
    which may be gone, or wait for this one."""
    print(f"\n{line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
