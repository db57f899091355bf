"""A TFDS data set of conversations, stored as ArrayRecord, as a source. TensorFlow is not needed.

`mgm_jax.data.tfds_llava` builds such data sets; `FEATURES` is what another builder must give.
"""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from mgm_jax.data.records import Encoded, Record, position

# feature -> its kind, as `_kind` words it; further features of the data set are not read
FEATURES = {
    "id": "Text",
    "conversations": "sequence of {from: Text, value: Text}",
    "images": "sequence of Image",
    "image_names": "sequence of Text",
}
# The small files TFDS writes beside the shards; `metadata.json` holds our builder's digest of all
# records.
INFO_FILES = ("dataset_info.json", "features.json", "metadata.json")


def import_tfds():
    """The package tensorflow_datasets; ValueError with the remedy where it is missing."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            f"TFDS data sets need tensorflow-datasets ({error}): pip install 'mgm-jax[tfds]'"
        ) from error
    return tensorflow_datasets


class TfdsSource:
    """The records of one split (TFDS's syntax: "train", "train[:90%]", ...) of a TFDS data set.

    `path` is the folder of one version (it holds dataset_info.json). Pictures stay encoded. The
    fingerprint covers TFDS's own description, our builder's digest of the records if there is one,
    and names and sizes of the shards; so in a data set built by other means, a change that keeps
    every size goes unseen.

    Raises FileNotFoundError where there is no data set or a shard is missing, and ValueError for
    another storage format, a missing or different feature, or an unknown split.
    """

    def __init__(self, path, split: str = "train"):
        tfds = import_tfds()
        self.path, self.split = str(path), split
        builder = _open(tfds, self.path)
        _check_features(builder.info.features, self.path)
        try:
            # Opens each shard when it is first read; closed again when pickled.
            self._raw = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except ValueError as error:  # of an unknown split it names those there are
            raise ValueError(f"{self.path}: split {split!r}: {error}") from error
        self._name = f"{builder.info.full_name} {split}"
        files = sorted({item.filename for item in builder.info.splits[split].file_instructions})
        self.fingerprint = _fingerprint(self.path, split, files)

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> Record:
        index = position(index, len(self), self.path)
        where = f"{self._name} record {index}"
        try:
            raw = self._raw[index]
            if raw is None:
                raise ValueError("the shard ends before it")
            found = _features().deserialize_example_np(raw)
            name = found["id"].decode()
            named = f"{where} (id {name})"
            turns = zip(*(found["conversations"][key] for key in ("from", "value")), strict=True)
            turns = [{"from": who.decode(), "value": text.decode()} for who, text in turns]
            pictures = zip(found["image_names"], found["images"], strict=True)
            pictures = tuple(Encoded(file.decode(), data, named) for file, data in pictures)
        except Exception as error:  # readers and parsers raise their own kinds
            raise ValueError(
                f"{where}: cannot be read ({error}): its shard in {self.path} is damaged or was "
                "written otherwise: build the data set again"
            ) from error
        if not turns:
            raise ValueError(f"{named}: conversations: found an empty list, expected turns")
        return Record(name, pictures, turns, named)


def _open(tfds, path: str):
    """The data set's builder, if the folder is one and its format allows random access."""
    if "://" in path and not path.startswith("gs://"):
        raise ValueError(f"{path}: ArrayRecord is read from disks and gs:// only: copy it there")
    if not (epath.Path(path) / INFO_FILES[0]).exists():
        raise FileNotFoundError(
            f"{path}: no {INFO_FILES[0]}, so this is no TFDS data set; expected the folder of one "
            "version, such as DATA_DIR/mgm_llava/NAME/1.0.0"
        )
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # protobuf's and TFDS's own kinds
        raise ValueError(f"{path}: not a readable TFDS data set: {error}") from error
    found = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in found:
        names = ", ".join(sorted(kind.value for kind in found)) or "no known format"
        raise ValueError(
            f"{path}: stored as {names}, expected array_record: build it with "
            "file_format='array_record', or run tfds convert_format --out_file_format=array_record"
        )
    builder.info.set_file_format("array_record", override=True, override_if_initialized=True)
    return builder


def _check_features(features, path: str) -> None:
    for name, expected in FEATURES.items():
        found = _kind(features[name]) if name in features else "none"
        if found != expected:
            raise ValueError(
                f"{path}: feature {name!r}: found {found}, expected {expected}; build the data set "
                "with mgm_jax.data.tfds_llava, or name its features alike"
            )


def _kind(feature) -> str:
    """A feature's type in words."""
    features = import_tfds().features
    if isinstance(feature, features.FeaturesDict):
        return "{" + ", ".join(f"{k}: {_kind(v)}" for k, v in sorted(feature.items())) + "}"
    if isinstance(feature, features.Sequence):
        return f"sequence of {_kind(feature.feature)}"
    return type(feature).__name__


@functools.cache
def _features():
    """`FEATURES` with pictures as byte strings: TFDS cannot skip decoding without TensorFlow."""
    features = import_tfds().features
    text = features.Text()
    return features.FeaturesDict(
        {
            "id": text,
            "conversations": features.Sequence({"from": text, "value": text}),
            "images": features.Sequence(text),
            "image_names": features.Sequence(text),
        }
    )


def _fingerprint(path: str, split: str, files) -> str:
    digest = hashlib.sha256(split.encode())
    for name in INFO_FILES:
        file = epath.Path(path) / name
        digest.update(file.read_bytes() if file.exists() else b"")
    with ThreadPoolExecutor(32) as pool:  # remote storage answers slowly
        for file, size in zip(files, pool.map(_size, files), strict=True):
            digest.update(f"{epath.Path(file).name} {size}".encode())
    return digest.hexdigest()


def _size(file: str) -> int:
    try:
        return epath.Path(file).stat().length
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: this shard is missing; copy or build it again") from None
