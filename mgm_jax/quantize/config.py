"""What is quantised and how, as data; and the names of quantised parameters. Imports no jax."""

from __future__ import annotations

import dataclasses
import re

# Towers, projector, mining, norms, embeddings and head stay as they are: they are small, and a
# picture's details live there.
TARGETS = r"llm/layers/(attn|mlp)/.*_proj/kernel|llm/layers/moe/w_(gate|up|down)"
GROUPS = {"int8": 0, "int4": 64, "nf4": 64}  # schemes and their usual groups
NAME = re.compile(rf"(.*)_({'|'.join(GROUPS)})(_scale)?")  # of a quantised parameter


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """`scheme`: int8, int4 or nf4. `group`: inputs of a matrix that share a scale; 0: all of them
    (one scale a channel). `targets`: regex of parameters. ValueError for another scheme."""

    scheme: str
    group: int = dataclasses.field(metadata={"signed": True})
    targets: str = TARGETS

    def __post_init__(self):
        if self.scheme not in GROUPS:
            raise ValueError(f"quant.scheme is {self.scheme!r}, expected one of {list(GROUPS)}")
        if self.group < 0:
            raise ValueError(f"quant.group is {self.group}, expected at least 0")


def make(scheme: str, group: int | None = None, targets: str = TARGETS) -> QuantConfig:
    """A QuantConfig in which a group of None is the scheme's usual one."""
    return QuantConfig(scheme, GROUPS.get(scheme, 0) if group is None else group, targets)


def plain_name(name: str) -> str:
    """The parameter that a quantised one stands for, or the name itself."""
    match = NAME.fullmatch(name)
    return match[1] if match else name
