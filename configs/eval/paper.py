"""The table of the paper: TextVQA, MMBench, MME, MM-Vet, MMMU and MathVista (MGM_SPEC 9.1).

`root` is a folder like the original's `data/MGM-Eval`.
"""

from __future__ import annotations

from mgm_jax.configs.common import eval_config, parse_arg
from mgm_jax.configs.eval import files


def get_config(arg: str | None = None):
    a = parse_arg(arg, root="data/MGM-Eval", faithful=False)
    return eval_config(files.under(a.root, files.PAPER), a.faithful)
