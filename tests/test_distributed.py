"""Whether a process has others to be joined with, from its environment alone."""

import pytest

from mgm_jax.distributed import DistributedError, settings

OURS = {"MGM_COORDINATOR": "host-0:1234", "MGM_PROCESSES": "2", "MGM_PROCESS": "1"}
TASK = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}
GKE = {"TPU_SKIP_MDS_QUERY": "true", "TPU_WORKER_HOSTNAMES": "a,b"}
ONE_HOST = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
VM = {"TPU_ML_PLATFORM": "JAX"}  # what `import jax` leaves on a TPU VM
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
AUTO = {}  # JAX finds them


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, None),
        ({"HOME": "/root", "TPU_SKIP_MDS_QUERY": "1"}, None),
        (VM, AUTO),
        (VM | {"JAX_PLATFORMS": "tpu,cpu"}, AUTO),
        (VM | {"JAX_PLATFORMS": "cpu"}, None),
        (GKE, AUTO),
        (ONE_HOST, None),
        (ONE_HOST | POD, None),
        (ONE_HOST | {"MEGASCALE_NUM_SLICES": "2"}, AUTO),
        (POD, AUTO),
        (TASK, AUTO),
        (TASK | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, AUTO),
    ],
)
def test_what_is_recognised(env, expected):
    assert settings(env) == expected


def test_our_variables_come_first():
    found = {"coordinator_address": "host-0:1234", "num_processes": 2, "process_id": 1}
    assert settings(OURS) == settings(OURS | TASK | GKE) == found


@pytest.mark.parametrize(
    "change, message",
    [
        ({"MGM_COORDINATOR": "host-0"}, "MGM_COORDINATOR is 'host-0', expected host:port"),
        ({"MGM_PROCESSES": "two"}, "MGM_PROCESSES is 'two', expected a whole number"),
        ({"MGM_PROCESS": "2"}, r"MGM_PROCESS is 2, expected 0 to 1 \(MGM_PROCESSES\)"),
        ({"MGM_PROCESS": None}, "MGM_PROCESS is not set but MGM_COORDINATOR is; set all three"),
    ],
)
def test_bad_variables(change, message):
    env = {k: v for k, v in (OURS | change).items() if v is not None}
    with pytest.raises(DistributedError, match=message):
        settings(env)
