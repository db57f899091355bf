"""`data.parallel`: order, errors, and worker processes that do not outlive their parent."""

import os
import subprocess
import sys
import time

import pytest

from mgm_jax.data.parallel import parallel_map

ENDLESS = """
import os, time
from mgm_jax.data.parallel import parallel_map

def pid(i):
    time.sleep(0.01)
    return os.getpid()

if __name__ == "__main__":
    for found in parallel_map(pid, 10**6, workers=1, chunk=1):
        print(found, flush=True)
"""


def square(i):
    if i == 13:
        raise ValueError("13 is bad")
    return i * i


@pytest.mark.parametrize("workers", [0, 2])
def test_results_in_order_up_to_the_first_error(workers):
    found = []
    with pytest.raises(ValueError, match="13 is bad"):
        found.extend(parallel_map(square, 20, workers=workers, chunk=3))
    assert len(found) >= 12 and found == [i * i for i in range(len(found))]


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "endless.py"], stdout=subprocess.PIPE, text=True
    )
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{worker}") and not is_zombie(worker):
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def is_zombie(pid):
    """Ended, but nobody has asked for its exit code (an init process that does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
