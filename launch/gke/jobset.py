"""A JobSet that trains: one Job a slice, one pod a host."""

from __future__ import annotations

import dataclasses
import shlex

import yaml

from launch.accelerators import find_slice
from launch.commands import TRAIN, check_name
from launch.watchdog import GIVEN_UP, USED_UP

# The TPU worker, its metrics, multislice, and JAX's coordinator.
PORTS = (8471, 8431, 8080, 8482)
STOP = 30  # seconds between training's grace and the pod's


@dataclasses.dataclass(frozen=True)
class GkeRun:
    """A run on GKE. `arguments`: those of training, but for the workdir. `queue`: a LocalQueue of
    Kueue. `env`: more variables of the container."""

    name: str
    image: str
    workdir: str
    arguments: tuple[str, ...]
    accelerator: str = "v5litepod-16"
    slices: int = 1
    restarts: int = 100
    grace: int = 300
    spot: bool = False
    reservation: str | None = None
    queue: str | None = None
    service_account: str | None = None
    env: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_name(self.name)
        find_slice(self.accelerator)
        if "://" not in self.workdir:
            raise ValueError(f"--workdir is {self.workdir}, expected a bucket: pods share no disk")
        if self.spot and self.reservation:
            raise ValueError("--spot and --reservation were both given, expected one of them")

    def command(self) -> list[str]:
        """Training under a watchdog that restarts nothing, since all pods begin again together: it
        finds hangs, and tells by its exit code what restarting cannot mend."""
        return [
            *("python", "-m", "launch.watchdog", "--restarts=0"),
            *(f"--heartbeat={self.workdir}/heartbeat", f"--grace={self.grace}", "--"),
            *("python", "-m", TRAIN, *self.arguments, f"--workdir={self.workdir}"),
        ]


def jobset(run: GkeRun) -> str:
    """The YAML. GKE itself tells the pods of a slice, and of all slices, of each other."""
    found = find_slice(run.accelerator)
    queue = {"labels": {"kueue.x-k8s.io/queue-name": run.queue}} if run.queue else {}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": run.name,
            **queue,
            # The hosts of a slice are those of one node pool.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            # The headless service, by which the pods have host names.
            "network": {"enableDNSHostnames": True, "subdomain": run.name},
            "failurePolicy": {
                "maxRestarts": run.restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": run.slices,
                    "template": {"spec": _job(run, found.hosts, _pod(run))},
                }
            ],
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False, width=100)


def _job(run: GkeRun, hosts: int, pod: dict) -> dict:
    hopeless = {"containerName": "train", "operator": "In", "values": [GIVEN_UP]}
    return {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # a lost host ends its slice, and the JobSet begins again
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": hopeless}]},
        "template": {"spec": pod},
    }


def _pod(run: GkeRun) -> dict:
    found = find_slice(run.accelerator)
    where = {
        "cloud.google.com/gke-tpu-accelerator": found.generation.gke,
        "cloud.google.com/gke-tpu-topology": found.topology,
    }
    pod: dict = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": run.grace + STOP,
        "hostNetwork": True,  # between slices the pods' own network is slower
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": where,
    }
    if run.service_account:
        pod["serviceAccountName"] = run.service_account
    if run.spot:
        where["cloud.google.com/gke-spot"] = "true"
        taint = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        pod["tolerations"] = [{**taint, "effect": "NoSchedule"}]
    if run.reservation:
        where["cloud.google.com/reservation-name"] = run.reservation
    env = [{"name": name, "value": value} for name, value in run.env]
    chips = {"google.com/tpu": found.chips_per_host}
    pod["containers"] = [
        {
            "name": "train",
            "image": run.image,
            "command": run.command(),
            **({"env": env} if env else {}),
            "ports": [{"containerPort": port} for port in PORTS],
            "securityContext": {"privileged": True},  # for the TPU's devices
            "resources": {"requests": chips, "limits": dict(chips)},
        }
    ]
    return pod


def xpk(run: GkeRun, cluster: str, zone: str, project: str | None = None) -> list[str]:
    """The same run as xpk starts it."""
    optional = {
        f"--project={project}": project,
        "--spot": run.spot,
        f"--reservation={run.reservation}": run.reservation,
    }
    return [
        *("xpk", "workload", "create"),
        *(f"--cluster={cluster}", f"--zone={zone}", f"--workload={run.name}"),
        *(f"--tpu-type={run.accelerator}", f"--num-slices={run.slices}"),
        f"--docker-image={run.image}",
        f"--max-restarts={run.restarts}",
        f"--restart-on-exit-codes={USED_UP}",
        f"--termination-grace-period-seconds={run.grace + STOP}",
        *(option for option, wanted in optional.items() if wanted),
        *(f"--env={name}={value}" for name, value in run.env),
        f"--command={shlex.join(run.command())}",
    ]
