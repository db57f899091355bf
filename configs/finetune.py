"""Fine-tuning of any whole checkpoint with your own data: stage 2 of the original (MGM_SPEC 6.1).

`get_config("init=DIR,batch=32")`; config, tokenizer and template are the checkpoint's. The data are
`--config.data.sources.main.path=FILE --config.data.sources.main.images=FOLDER`. A model with HD
needs `--config.data.length=4096`: a picture of its takes 2,880 tokens. For a published variant,
configs/mgm_7b.py:stage=finetune,init=DIR and its neighbours know rate and mesh, too.
"""

from __future__ import annotations

from mgm_jax.configs import common
from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    a = common.parse_arg(
        arg, init=None, batch=128, faithful=False, open_clip=False, open_convnext=False
    )
    if not a.init:
        raise ValueError("finetune config: needs init=DIR, the checkpoint to go on from")
    c = common.stage_config(2, lr=2e-5, batch=a.batch, args=a)
    c.init = [(".*", a.init)]
    return c
