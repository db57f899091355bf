"""From a run's config to its batches: what training, `data preview` and `data replay` share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import cached_property

from ml_collections import ConfigDict

from mgm_jax.convert.overrides import with_switches
from mgm_jax.data.lengths import read_lengths
from mgm_jax.data.mixture import check_mixture
from mgm_jax.data.pipeline import Batches, Encoder, Pictures
from mgm_jax.data.records import Source
from mgm_jax.data.schedule import BATCHINGS, Schedule
from mgm_jax.data.sources import open_source
from mgm_jax.models.config import MgmConfig
from mgm_jax.settings import TrainingError, check_numbers, check_switches, read_model_config
from mgm_jax.switches import choose
from mgm_jax.text import get_template, load_tokenizer
from mgm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Stream:
    """The data of a run. Every step's batch can be made, in any order, on any machine."""

    cfg: MgmConfig
    tokenizer: Tokenizer
    template: str
    switches: dict
    sources: dict[str, Source]
    encoder: Encoder
    schedule: Schedule
    identity: dict  # what a resumed run has to find again

    @cached_property
    def pictures(self) -> Callable:
        return Pictures(self.cfg.image)

    def batches(self, groups: Sequence[int] | None = None, pictures: Callable | None = None):
        """Batches of all steps, whole or these groups of them."""
        return Batches(
            self.schedule,
            tuple(self.sources.values()),
            self.encoder,
            pictures or self.pictures,
            tuple(range(self.schedule.groups) if groups is None else groups),
        )

    def batch(self, step: int) -> dict:
        """The whole global batch of a step (counted from 0): ARCHITECTURE 3."""
        return self.batches()[step]

    def members(self, step: int) -> list[list[tuple[str, int, str]]]:
        """(source, record, its `where`) of the examples in each row, in the order of segments."""
        names = list(self.sources)
        return [
            [(names[s], r, self.sources[names[s]][r].where) for s, r in row]
            for row in self.schedule.members(step, range(self.schedule.groups))
        ]

    def epoch(self, step: int) -> tuple[int, float]:
        """(epoch, share of it that is done) at the beginning of a step."""
        return self.schedule.at(step)


def open_stream(
    config: ConfigDict, *, shards: int = 1, kept: dict | None = None, index: str | None = None
) -> Stream:
    """Checks the config, opens its sources, and plans the first epoch.

    `shards`: parts that the mesh splits a batch into. `kept`: the identity of the run that is
    resumed, whose rows in a group and slots hold where the config leaves them open. `index`: where
    lengths are kept if `config.data.index` is None. TrainingError or the data's errors.
    """
    check_numbers(config)
    data = config.data
    switches = check_switches(config)
    cfg, tokenizer_dir, template = read_model_config(config)
    cfg = with_switches(cfg, switches, "config.switches.")
    get_template(template)
    tokenizer = load_tokenizer(tokenizer_dir)
    if tokenizer.vocab_size > cfg.llm.vocab_size:
        raise TrainingError(
            f"{tokenizer_dir} has {tokenizer.vocab_size} pieces, more than the model's "
            f"llm.vocab_size {cfg.llm.vocab_size}"
        )
    parts = shards * config.accumulate
    rows = data.group_rows or (kept or {}).get("group_rows") or data.batch // parts
    _check_layout(data, rows, shards, config.accumulate, switches)
    sources, weights = _open_sources(data.sources)
    text = {name: switches[name] for name in choose("text")}
    encoder = Encoder(template, tokenizer, cfg.visual_tokens, data.length, text)
    lengths = {
        name: read_lengths(source, encoder, data.index or index, name=name)
        for name, source in sources.items()
    }
    schedule = Schedule(
        tuple(lengths.values()),
        weights,
        cfg.visual_tokens,
        data.length,
        rows,
        data.batch // rows,
        batching=data.batching,
        micro_rows=data.microbatch if data.length_grouping else None,
        slots=data.slots or (kept or {}).get("slots"),
        window=data.window,
        seed=config.seed,
        epochs=config.epochs,
    )
    schedule.epoch(0)
    identity = {
        "sources": {
            name: {
                "records": len(source),
                "skipped": len(getattr(source, "skipped", ())),
                "fingerprint": source.fingerprint,
            }
            for name, source in sources.items()
        },
        "group_rows": rows,
        "slots": schedule.slots,
    }
    return Stream(cfg, tokenizer, template, switches, sources, encoder, schedule, identity)


def check_identity(found: dict, kept: dict, file) -> None:
    """TrainingError unless a resumed run's data are those that it began with."""
    names = [set(d["sources"]) for d in (found, kept)]
    if names[0] != names[1]:
        raise TrainingError(
            f"{file}: the run began with the sources {sorted(names[1])}, found {sorted(names[0])}; "
            "go on with those, or start in another --workdir"
        )
    for name, was in kept["sources"].items():
        if (now := found["sources"][name]) != was:
            raise TrainingError(
                f"{file}: source {name!r} has changed since the run began: it had "
                f"{was['records']} records, fingerprint {was['fingerprint'][:12]}, found "
                f"{now['records']}, {now['fingerprint'][:12]}; restore it, or start in another "
                "--workdir"
            )
    for key in ("group_rows", "slots"):
        if found[key] != kept[key]:
            raise TrainingError(
                f"{file}: the run began with data.{key} {kept[key]}, found {found[key]}; set it to "
                f"{kept[key]}, or start in another --workdir"
            )


def _open_sources(entries: ConfigDict) -> tuple[dict[str, Source], tuple[float, ...]]:
    """`config.data.sources` -> (sources by name, their weights); a mixture that has records twice
    is warned about on stderr."""
    known = {"path": "", "images": None, "skip": None, "weight": 1.0}
    sources, weights = {}, []
    for name, given in entries.items():
        where = f"config.data.sources.{name}"
        if unknown := sorted(set(given) - set(known)):
            raise TrainingError(f"{where} has the key {unknown[0]!r}, expected {sorted(known)}")
        values = known | dict(given)
        if not values["path"]:
            raise TrainingError(f"{where}.path is not set, expected a data set's file or folder")
        if not values["weight"] > 0:
            raise TrainingError(f"{where}.weight is {values['weight']}, expected more than 0")
        sources[name] = open_source(values["path"], values["images"], values["skip"])
        weights.append(values["weight"])
    for warning in check_mixture(sources):
        print(f"warning: {warning}", file=sys.stderr)
    return sources, tuple(weights)


def _check_layout(
    data: ConfigDict, rows: int, shards: int, accumulate: int, switches: dict
) -> None:
    if data.batching not in BATCHINGS:
        raise TrainingError(f"config.data.batching is {data.batching!r}, expected {BATCHINGS}")
    if not data.sources:
        raise TrainingError("config.data.sources is empty, expected at least one")
    parts = shards * accumulate
    if not rows or data.batch % rows or data.batch // rows % parts:
        raise TrainingError(
            f"config.data.batch {data.batch} in groups of {rows} rows (config.data.group_rows) "
            f"does not divide over {shards} batch shards (mesh axes data, fsdp, expert)"
            + (f" in {accumulate} parts (config.accumulate)" if accumulate > 1 else "")
            + f": the number of groups has to be a multiple of {parts}"
        )
    if data.length_grouping and data.batching != "pad":
        raise TrainingError(
            "config.data.length_grouping is the original's order of padded rows, but "
            f"config.data.batching is {data.batching!r}, expected 'pad'"
        )
    if data.batch % data.microbatch and data.length_grouping:
        raise TrainingError(
            f"config.data.batch {data.batch} does not divide into micro-batches of "
            f"config.data.microbatch {data.microbatch} rows"
        )
    if switches["loss_reduction"] == "microbatch" and data.batching == "pack":
        raise TrainingError(
            "config.switches.loss_reduction is 'microbatch', a mean over rows with one example "
            "each, but config.data.batching is 'pack'; set it to 'pad'"
        )
