"""What an adapter is, as data; and regexes of the parameters around it. Imports no jax."""

from __future__ import annotations

import dataclasses

TARGETS = "llm/layers/(attn|mlp)/.*_proj"  # every matrix of every layer, as PEFT's "all-linear"
TOWERS = ("clip", "convnext")
WHOLE = r"(projector|mining)/.*|llm/(embed|lm_head)/.*"  # what may be trained whole beside them
NAMES = ".*/lora_[ab]"  # a regex of adapters' parameters, for lists of rules


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """An adapter: its update is `scale * x A B`.

    `targets`: regex of the Linears' names. `dropout`: rate on x, in training. `rslora`: the scale
    is alpha / sqrt(rank) (arXiv 2312.03732), else alpha / rank. ValueError for values out of range.
    """

    rank: int
    alpha: float
    targets: str = TARGETS
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}, expected at least 1")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha}, expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}, expected at least 0, below 1")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
