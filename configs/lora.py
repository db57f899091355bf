"""LoRA on any whole checkpoint with your own data: adapters of the language model, and projector
and mining whole. Config, tokenizer and template are the checkpoint's, as in configs/finetune.py.

`get_config("init=DIR,rank=16,batch=32")`; alpha is twice the rank if not given. `quant=nf4` (int8,
int4): the frozen language model is held quantised (QLoRA). What is left in WORKDIR/model is an
adapter (docs/lora.md).
"""

from __future__ import annotations

from mgm_jax.configs import common
from ml_collections import ConfigDict

from mgm_jax.lora.config import NAMES

# What trains: adapters, projector and mining. The rest is the base's, and frozen.
SCHEDULE = [(NAMES, common.COSINE), ("(projector|mining)/.*", common.COSINE), (".*", None)]


def get_config(arg: str | None = None) -> ConfigDict:
    a = common.parse_arg(arg, init=None, rank=16, alpha=0.0, quant=None, batch=128, faithful=False)
    if not a.init:
        raise ValueError("lora config: needs init=DIR, the checkpoint to adapt")
    a.open_clip = a.open_convnext = False
    c = common.stage_config(2, lr=2e-4, batch=a.batch, args=a)
    with_lora(c, a.rank, a.alpha)
    c.quant.scheme = a.quant
    c.init = [(".*", a.init)]
    return c


def with_lora(c: ConfigDict, rank: int, alpha: float = 0.0) -> None:
    """Makes a config one of LoRA, whose rate is 2e-4; projector and mining train at a tenth of it,
    their rate in stage 2."""
    c.optim.lr = 2e-4
    c.lora.rank = rank
    c.lora.alpha = float(alpha or 2 * rank)
    c.optim.schedule = SCHEDULE
    c.optim.lr_mults = [("(projector|mining)/.*", 0.1)]
