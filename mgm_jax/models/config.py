"""What a checkpoint defines: frozen dataclasses, one per part, with a JSON form (`mgm.json`).

There is no default for anything that weights decide (sizes, epsilons, rope theta, activation):
a wrong default would load and then be quietly wrong (an eps mistake moves logits by 5e-5).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_KINDS = ("clip", "siglip", "vit")


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes the two views (MGM_SPEC 4): sizes in pixels.

    `hr_size` is the side of the square HR picture; the LR view has side `lr_size * grid` and is cut
    into grid x grid crops; `use_global` appends the whole view at `lr_size`. `aspect` is "pad"
    (square canvas in the mean colour) or "square" (short side resized, centre crop). `mean` and
    `std` normalise the LR view, and the HR one too unless it has `hr_mean` and `hr_std`.
    """

    lr_size: int
    hr_size: int
    aspect: str = "pad"
    grid: int = 1
    use_global: bool = False
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    hr_mean: tuple[float, ...] | None = None
    hr_std: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.aspect not in ("pad", "square"):
            raise ValueError(f"image.aspect is {self.aspect!r}, expected 'pad' or 'square'")
        if self.use_global and self.grid < 2:
            raise ValueError(f"image.use_global needs image.grid >= 2, found {self.grid}")
        if (self.hr_mean is None) != (self.hr_std is None):
            raise ValueError("image.hr_mean and image.hr_std: one is given without the other")

    @property
    def crops(self) -> int:
        """Views of one picture that CLIP sees: grid crops, then the global one if any."""
        return self.grid * self.grid + self.use_global


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The low-resolution encoder, a ViT. `select_layer` counts as in HF hidden_states (-2: last
    but one; where it is the last, the final norm of a tower that is not CLIP's is applied).

    `kind`: "clip" is OpenAI's (MGM_SPEC 1.3): class token with a position of its own, norm before
    the layers, no patch bias. "siglip" has neither token nor such a norm, but a patch bias. "vit"
    is siglip with a class token that has no position (big_vision's pool "tok").
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    norm_eps: float
    act: str
    select_layer: int = dataclasses.field(metadata={"signed": True})
    kind: str = "clip"

    def __post_init__(self):
        if self.kind not in VISION_KINDS:
            raise ValueError(f"clip.kind is {self.kind!r}, expected one of {VISION_KINDS}")
        if self.kind == "clip" and self.image_size % self.patch_size:
            raise ValueError(
                f"clip.image_size {self.image_size} is not a multiple of patch_size "
                f"{self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"clip.width {self.width} does not divide into {self.heads} heads")
        if not 1 <= self.layers_run <= self.layers:
            raise ValueError(
                f"clip.select_layer {self.select_layer} is outside of {self.layers} layers"
            )

    @property
    def grid(self) -> int:
        """Patches along a side; a rest of pixels at the right and below is not seen (384 / 14)."""
        return self.image_size // self.patch_size

    @property
    def final_norm(self) -> bool:
        """Whether the norm behind the layers runs: never in CLIP, else behind the last layer."""
        return self.kind != "clip" and self.layers_run == self.layers

    @property
    def layers_run(self) -> int:
        """Layers up to the selected features; the rest are kept for export and never run."""
        index = self.select_layer
        return self.layers + 1 + index if index < 0 else index


@dataclasses.dataclass(frozen=True)
class ConvNextConfig:
    """OpenCLIP ConvNeXt trunk (MGM_SPEC 1.4): stem of stride `patch_size`, a stage a width."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch_size: int
    kernel_size: int
    norm_eps: float

    def __post_init__(self):
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"convnext.widths {self.widths} and depths {self.depths} differ in length"
            )

    @property
    def channels(self) -> int:
        """Channels of the fused map: all stages side by side."""
        return sum(self.widths)


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """The experts in place of a decoder's MLPs (MGM_SPEC 2.6).

    `router_loss` is the coefficient of the load-balancing loss; 0 where the original leaves it out
    (`output_router_logits: false`), as in every published model (MGM_SPEC 2.5).
    """

    count: int
    per_token: int
    router_loss: float

    def __post_init__(self):
        if self.per_token > self.count:
            raise ValueError(
                f"llm.experts.per_token {self.per_token} is more than count {self.count}"
            )


EMBED_SCALES = (None, "exact", "rounded")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder: LLaMA, Vicuna, Yi, Mistral, Mixtral or Gemma (MGM_SPEC 1.2).

    `zero_centred_norm`: norms multiply by 1 + scale. `embed_scale`: None, or all input embeddings,
    visual tokens too, times sqrt(dim), which is "rounded" to the compute dtype first or "exact"
    (MGM_SPEC 2.6). `experts`: None for one dense MLP a layer.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    act: str
    norm_eps: float
    rope_theta: float
    tied_embeddings: bool
    zero_centred_norm: bool
    embed_scale: str | None
    experts: ExpertsConfig | None

    def __post_init__(self):
        if self.embed_scale not in EMBED_SCALES:
            raise ValueError(
                f"llm.embed_scale is {self.embed_scale!r}, expected one of {EMBED_SCALES}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"llm.heads {self.heads} is not a multiple of llm.kv_heads {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"llm.head_dim {self.head_dim} is odd; rotary embeddings need pairs")


@dataclasses.dataclass(frozen=True)
class MgmConfig:
    """The whole model. `convnext=None` is the LR-only model (MGM_SPEC 2.2, last paragraph)."""

    image: ImageSpec
    clip: ClipConfig
    convnext: ConvNextConfig | None
    llm: DecoderConfig
    mining_eps: float
    projector: str

    def __post_init__(self):
        if self.clip.image_size != self.image.lr_size:
            raise ValueError(
                f"clip.image_size {self.clip.image_size} differs from image.lr_size "
                f"{self.image.lr_size}"
            )
        self._check_normalisation()
        if self.convnext:
            cells, rest = divmod(self.image.hr_size, self.convnext.patch_size)
            if rest or cells % (self.clip.grid * self.image.grid):
                raise ValueError(
                    f"image.hr_size {self.image.hr_size} / convnext.patch_size "
                    f"{self.convnext.patch_size} must be a multiple of the "
                    f"{self.clip.grid * self.image.grid} low-resolution tokens of a side "
                    f"({self.clip.grid} a crop, image.grid {self.image.grid})"
                )

    def _check_normalisation(self):
        """A tower that is not CLIP's must say its own: CLIP's would load, and be quietly wrong."""
        image, kind = self.image, self.clip.kind
        if kind != "clip" and (image.mean, image.std) == (CLIP_MEAN, CLIP_STD):
            raise ValueError(
                f"image.mean and image.std are CLIP's, but clip.kind is {kind!r}: give those of "
                "the tower (SigLIP and big_vision: 0.5 each)"
            )
        if kind != "clip" and self.convnext and image.hr_mean is None:
            raise ValueError(
                f"image.hr_mean and image.hr_std are not given, but clip.kind is {kind!r}, whose "
                "normalisation is not ConvNeXt's: give that of its training (OpenCLIP: "
                f"{list(CLIP_MEAN)} and {list(CLIP_STD)})"
            )

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one picture in the language model."""
        return self.clip.grid**2 * self.image.crops

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MgmConfig:
        return build(cls, values, "model")


def read_parts(values: Mapping[str, Any]) -> MgmConfig | dict[str, Any]:
    """The config of a whole model, or, of a checkpoint that holds parts of one, key -> its value.

    Parts are base weights (`clip`, `convnext`, `llm`) and what stage 1 trains (`projector`,
    `mining_eps` for the mining weights). ValueError for a key or value that is none of MgmConfig's.
    """
    hints = typing.get_type_hints(MgmConfig)
    if not isinstance(values, Mapping) or not set(values) < set(hints):
        return MgmConfig.from_dict(values)
    return {k: _convert(hints[k], v, f"model.{k}") for k, v in values.items()}


def to_dict(config: MgmConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of what `read_parts` gives."""
    if isinstance(config, MgmConfig):
        return config.to_dict()
    return {
        k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in config.items()
    }


def build(cls: type, values: Any, where: str) -> Any:
    """Builds dataclass `cls` from a nested mapping; a ValueError names a wrong or missing key."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}, expected a mapping")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}, expected one of {sorted(fields)}")
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise ValueError(f"{where}: missing key {missing[0]!r}")
    hints = typing.get_type_hints(cls)
    values = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    for name, value in values.items():  # every integer is a size or a count, but for `signed` ones
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < 1 and "signed" not in fields[name].metadata:
                raise ValueError(f"{where}.{name} is {number}, expected at least 1")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}, expected a list")
        (item, _) = typing.get_args(hint)
        return tuple(_convert(item, v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, expected {hint.__name__}")
    return value
