"""Pictures a second: the pipeline's worker processes against a PyTorch DataLoader's.

The DataLoader does what the original does on the host (MGM_SPEC 4.1): decode, paste on a square
canvas, bicubic, crop, rescale and normalise to float32. Ours hands out uint8, which the device
normalises. Both read the same files with as many processes, and both hand their arrays to this
process through shared memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from mgm_jax.data.pipeline import Pictures, iterate
from mgm_jax.data.records import PictureFile
from mgm_jax.models.config import ImageSpec

MIN_ROUNDS = 3
TURN = 16  # batches at most that one way reads before it is the other's turn
TICK = 0.01  # seconds by which processor time is counted


@dataclasses.dataclass(frozen=True)
class PictureBatches:
    """What `pipeline.iterate` reads: element i is the i-th batch of an endless round of files."""

    pictures: tuple[PictureFile, ...]
    spec: ImageSpec
    batch: int
    first: int = 0

    def __len__(self) -> int:
        return 2**31 - 1 - self.first

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        start, count = (self.first + i) * self.batch, len(self.pictures)
        chosen = [self.pictures[(start + m) % count] for m in range(self.batch)]
        return Pictures(self.spec)([chosen])


@dataclasses.dataclass(frozen=True)
class OriginalPictures:
    """A map-style data set for torch's DataLoader: item i is float32 [3, H, H], with `lr` also the
    LR view [3, h, h]."""

    names: tuple[str, ...]
    spec: ImageSpec
    lr: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int):
        import torch

        spec, size = self.spec, self.spec.hr_size
        picture = Image.open(self.names[i]).convert("RGB")
        if picture.width != picture.height:
            side = max(picture.size)
            square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in spec.mean))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        # Its centre crop has nothing to cut from a square.
        pixels = (pixels * (1 / 255)).astype(np.float32)
        pixels = (pixels - np.float32(spec.mean)) / np.float32(spec.std)
        hr = torch.from_numpy(pixels.transpose(2, 0, 1))
        if not self.lr:
            return hr
        lr = torch.nn.functional.interpolate(
            hr[None], size=[spec.lr_size] * 2, mode="bilinear", align_corners=False
        )
        return lr[0], hr


def torch_batches(data: OriginalPictures, *, batch: int, workers: int) -> Iterator:
    """Batches of an endless round of `data`; as many worker processes, started like ours."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=batch,
        sampler=_Endless(len(data)),
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_as_pillow_comes,
    )
    return iter(loader)


@dataclasses.dataclass(frozen=True)
class _Endless:
    count: int

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(self.count))


def _as_pillow_comes(worker: int) -> None:
    """Undo what importing `data.images` sets."""
    Image.core.set_blocks_max(0)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Pictures a second; and for each second of processor time, of all processes together: what a
    core does, however busy the machine is with other things."""

    wall: float
    core: float


def measure(batches: Iterator, count: int, *, batch: int, drain: int) -> Speed:
    """Over `count` batches, after `drain` that may have waited in buffers."""
    for _ in range(drain):
        next(batches)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    for _ in range(count):
        next(batches)
    pictures = count * batch
    wall, cpu = time.perf_counter() - wall, max(_cpu_seconds() - cpu, TICK)
    return Speed(pictures / wall, pictures / cpu)


def _cpu_seconds() -> float:
    """Of this process and its workers, since they began."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def compare(
    pictures: list[PictureFile],
    spec: ImageSpec,
    *,
    workers: int,
    batch: int = 16,
    torch: bool = True,
) -> dict:
    """Both in turn, at least `MIN_ROUNDS` times and until all pictures have been read; medians.

    "lr": the DataLoader with the LR view, which the original makes on the host as well. Without
    `torch` its entries are None.
    """
    batch = min(batch, len(pictures))
    names = tuple(picture.name for picture in pictures)
    ours = iterate(PictureBatches(tuple(pictures), spec, batch), 0, workers=workers)
    with contextlib.closing(ours):
        running = {"ours": ours}
        if torch:
            for name, lr in (("torch", False), ("torch_lr", True)):
                data = OriginalPictures(names, spec, lr)
                running[name] = torch_batches(data, batch=batch, workers=workers)
        found = _take_turns(running, len(pictures), batch=batch, workers=workers)
    core = {name: [speed.core for speed in speeds] for name, speeds in found.items()}
    wall = {name: [speed.wall for speed in speeds] for name, speeds in found.items()}
    return {
        "images_per_s_per_core": _median(core["ours"]),
        "torch_images_per_s_per_core": _median(core.get("torch")),
        "torch_lr_images_per_s_per_core": _median(core.get("torch_lr")),
        "images_ratio": _median(_ratios(core)),
        "images_per_s": _median(wall["ours"]),
        "torch_images_per_s": _median(wall.get("torch")),
        "images_ratio_wall": _median(_ratios(wall)),
        "rounds": core,
        "rounds_wall": wall,
    }


def _take_turns(running, pictures: int, *, batch: int, workers: int) -> dict[str, list[Speed]]:
    """Speeds of each of the `running` in each round."""
    count = min(TURN, max(1, pictures // (batch * MIN_ROUNDS)))
    rounds = max(MIN_ROUNDS, -(-pictures // (batch * count)))
    # A worker may have one batch in its queue and one in hand, or two in the DataLoader's.
    drain = 2 * workers
    for batches in tqdm(running.values(), desc="starting workers", unit="way"):
        next(batches)
    found: dict[str, list[Speed]] = {name: [] for name in running}
    for number in tqdm(range(rounds), desc="pictures", unit="round"):
        for name, batches in running.items():
            if name != "torch_lr" or number < MIN_ROUNDS:  # enough for a remark
                found[name].append(measure(batches, count, batch=batch, drain=drain))
    return found


def _ratios(found: dict[str, list[float]]) -> list[float]:
    return [a / b for a, b in zip(found["ours"], found.get("torch", ()), strict=False)]


def _median(values: list[float] | None) -> float | None:
    return statistics.median(values) if values else None
