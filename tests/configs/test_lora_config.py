"""What the configs of LoRA and QLoRA say, and what they refuse."""

from pathlib import Path

import pytest
from mgm_jax.configs import variants

from mgm_jax.optim import make_plan
from mgm_jax.plan.job import model_config
from mgm_jax.program import abstract_run, lora_config, quant_config
from mgm_jax.settings import TrainingError, check_numbers, read_config
from mgm_jax.sharding import stacks
from mgm_jax.tree import flatten

CONFIGS = Path(variants.__file__).parent


def test_stage_2_of_a_published_variant():
    config = read_config(f"{CONFIGS}/mgm_7b.py:stage=2,lora=16,quant=nf4")
    check_numbers(config)
    assert [list(rule) for rule in config.init] == [[".*", "workdir/MGM-7B-stage1/model"]]
    lora, quant = lora_config(config), quant_config(config)
    assert (lora.rank, lora.scale) == (16, 2.0) and (quant.scheme, quant.group) == ("nf4", 64)
    _, _, shapes, axes = abstract_run(model_config(config), lora, quant)
    plan = make_plan(config.optim, flatten(shapes), 100, stacks(shapes, axes))
    adapters = {n for n in plan.trainable if n.startswith("llm/")}
    assert len(adapters) == 14 and all(n.endswith(("lora_a", "lora_b")) for n in adapters)
    assert config.optim.lr == 2e-4 and {plan.lr_mults[n] for n in adapters} == {1.0}
    assert {plan.lr_mults[n] for n in set(plan.trainable) - adapters} == {0.1}
    assert plan.whole == {"projector", "mining"}


def test_any_checkpoint_with_own_data():
    config = read_config(f"{CONFIGS}/lora.py:init=DIR,rank=8,alpha=4,quant=int8,batch=16")
    lora, quant = lora_config(config), quant_config(config)
    assert (lora.rank, lora.scale, config.data.batch) == (8, 0.5, 16)
    assert (quant.scheme, quant.group) == ("int8", 0)
    assert [list(rule) for rule in config.init] == [[".*", "DIR"]]


@pytest.mark.parametrize(
    "file,message",
    [
        ("lora.py", "needs init=DIR"),
        ("mgm_7b.py:stage=2,quant=nf4", "integers, which have no gradient: add lora=16"),
        ("mgm_7b.py:stage=1,lora=16", "no lora in it"),
        ("lora.py:init=DIR,ranks=8", "'ranks' is unknown"),
    ],
)
def test_refusals(file, message):
    with pytest.raises(TrainingError, match=message):
        read_config(f"{CONFIGS}/{file}")
