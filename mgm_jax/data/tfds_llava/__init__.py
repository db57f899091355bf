"""A TFDS builder for LLaVA-format data; needs the extra `tfds`, but not TensorFlow.

Importing this package makes the builder known to TFDS (`mgm-jax data tfds` does the same):

    import tensorflow_datasets as tfds
    from mgm_jax.data.tfds_llava import LlavaConfig
    config = LlavaConfig(name="mine", json="train.json", images="pictures")
    tfds.builder("mgm_llava", config=config, data_dir="out").download_and_prepare()
    records = tfds.data_source("mgm_llava/mine", split="train", data_dir="out")

TFDS reads ArrayRecord through `tfds.data_source` only. For `tfds.load`, give `tfds.builder` also
`file_format="tfrecord"`, which needs TensorFlow and which `mgm_jax.data.tfds` does not read; load
it with `decoders={"images": tfds.decode.SkipDecoding()}`, since TensorFlow cannot stack pictures of
different sizes.
"""

from mgm_jax.data.tfds_llava.mgm_llava import LlavaConfig, MgmLlava, build_tfds

__all__ = ["LlavaConfig", "MgmLlava", "build_tfds"]
