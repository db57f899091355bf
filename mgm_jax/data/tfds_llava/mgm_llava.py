"""The TFDS builder `mgm_llava`: conversations and their pictures' original bytes, in order.

Record i of the data set is record i of its source: shards are written in order, not shuffled by
key as TFDS's other builders do, which would also need TensorFlow for more than a gigabyte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator

from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import Source
from mgm_jax.data.roots import Roots
from mgm_jax.data.sources import open_source
from mgm_jax.data.tfds import import_tfds

tfds = import_tfds()
NAME = re.compile(r"[A-Za-z0-9_.+-]+")  # what TFDS can parse in "mgm_llava/NAME"


@dataclasses.dataclass(kw_only=True)
class LlavaConfig(tfds.core.BuilderConfig):
    """What to build: what `open_source` takes (json, images, skip), or an opened source.

    `root` is the leading folder left out of the stored picture names (default: `images` if that is
    one folder). A shard of `records_per_shard` is held in memory while it is written. `workers`
    processes read the records (0: this one; more help where storage answers slowly).
    """

    version: str = "1.0.0"
    json: str = ""
    images: Roots | None = None
    skip: str | None = None
    source: Source | None = None
    root: str | None = None
    records_per_shard: int = 1000
    workers: int = 0

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name: found {self.name!r}, expected letters, digits, _ . + -")
        if not re.fullmatch(r"\d+\.\d+\.\d+", str(self.version)):
            raise ValueError(f"version: found {self.version!r}, expected three numbers: 1.0.0")
        if self.records_per_shard < 1:
            raise ValueError(f"records_per_shard: found {self.records_per_shard}, expected 1 or up")

    def open(self) -> Source:
        """ValueError if there is nothing to build from, or not one thing."""
        if (self.source is None) == (not self.json):
            raise ValueError(f"config {self.name!r}: expected either `json` or `source`")
        source = self.source
        if source is None:
            source = open_source(self.json, self.images, self.skip)
        if not len(source):
            raise ValueError(f"config {self.name!r}: the source has no record, expected some")
        return source


@dataclasses.dataclass(frozen=True)
class Reader:
    """number -> a record as TFDS's features take it, pictures as bytes; pickled to workers."""

    source: Source
    root: str

    def __call__(self, index: int) -> dict:
        record = self.source[index]
        data = []
        for picture in record.images:
            try:
                with picture.open() as file:
                    data.append(file.read())
            except OSError as error:
                reason = error.strerror or error
                raise OSError(
                    f"{record.where}: picture {picture.name}: {reason}; `mgm-jax data check` finds "
                    "all such records and writes a list of what to skip"
                ) from error
        names = [picture.name.removeprefix(self.root) for picture in record.images]
        turns = [{key: turn[key] for key in ("from", "value")} for turn in record.conversations]
        return {"id": record.id, "conversations": turns, "images": data, "image_names": names}


class MgmLlava(tfds.core.ShardBasedBuilder):
    """LLaVA-format conversations about pictures, as `LlavaConfig` names them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIG_CLASS = LlavaConfig

    def __init__(self, *, file_format="array_record", **kwargs):
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Conversations about pictures (LLaVA format), original picture files.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "conversations": tfds.features.Sequence({"from": text, "value": text}),
                    "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
                    "image_names": tfds.features.Sequence(text),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict:
        del dl_manager
        config = self.builder_config
        if not isinstance(config, LlavaConfig):
            raise ValueError("mgm_llava: nothing to build from, expected config=LlavaConfig(...)")
        source = config.open()
        images = config.images if isinstance(config.images, str) else ""
        root = images if config.root is None else config.root
        reader = Reader(source, root.rstrip("/") + "/" if root else "")
        found = parallel_map(reader, len(source), workers=config.workers, name=self.info.full_name)
        examples = self._examples(found, source.fingerprint)
        # TFDS asks for one shard after the other, so that all can take from one stream.
        full = (len(source) - 1) // config.records_per_shard
        shards = [lambda: itertools.islice(examples, config.records_per_shard)] * full
        return {"train": [*shards, lambda: examples]}

    def _examples(self, found: Iterator[dict], fingerprint: str) -> Iterator[tuple[int, dict]]:
        """(number, example) of every record; at the end, what metadata.json is to hold is set."""
        digest = hashlib.sha256()
        for number, example in enumerate(found):
            pictures = [hashlib.sha256(data).hexdigest() for data in example["images"]]
            digest.update(json.dumps({**example, "images": pictures}, sort_keys=True).encode())
            # TFDS takes a text for the path of a file, and a file object for the file.
            yield number, {**example, "images": [io.BytesIO(data) for data in example["images"]]}
        self.info.metadata["source_fingerprint"] = fingerprint
        self.info.metadata["records_sha256"] = digest.hexdigest()


def build_tfds(source: Source, data_dir, name: str, version: str = "1.0.0", **options) -> str:
    """Build `data_dir/mgm_llava/name/version` from a source; returns that folder.

    `options` are further fields of `LlavaConfig`. The folder appears when all is written; one that
    is there already is left alone and must have been built from this source (ValueError). What a
    killed build leaves, `incomplete.*` beside that folder, may be removed.
    """
    config = LlavaConfig(name=name, version=version, source=source, **options)
    builder = MgmLlava(config=config, data_dir=data_dir)
    builder.download_and_prepare()
    found = (builder.info.metadata or {}).get("source_fingerprint")
    if found != source.fingerprint:
        raise ValueError(
            f"{builder.data_dir}: there already, built from another source (fingerprint {found}, "
            f"expected {source.fingerprint}): choose another name or version, or remove it"
        )
    return str(builder.data_dir)
