"""The demo: a small, whole Mini-Gemini that a laptop trains in minutes (`mgm-jax demo`).

`get_config("stage=2,arm=mining,root=DIR")` is one of its four training runs, as the demo itself
starts them; `get_demo` is the pipeline around them.
"""

from __future__ import annotations

from mgm_jax.configs import common
from ml_collections import ConfigDict

ARMS = ("mining", "lr_only")


def model(vocab_size: int, arm: str) -> dict:
    """192 px pictures, of which the low-resolution encoder sees 12 px: 36 visual tokens."""
    return dict(
        image=dict(lr_size=12, hr_size=192, aspect="pad"),
        clip=dict(
            image_size=12,
            patch_size=2,
            width=64,
            layers=4,
            heads=4,
            mlp_dim=192,
            norm_eps=1e-5,
            act="quick_gelu",
            select_layer=-2,
        ),
        convnext=dict(
            widths=(32, 64, 128), depths=(1, 1, 2), patch_size=4, kernel_size=3, norm_eps=1e-6
        )
        if arm == "mining"
        else None,
        llm=dict(
            vocab_size=vocab_size,
            dim=96,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=24,
            mlp_dim=256,
            act="silu",
            norm_eps=1e-5,
            rope_theta=1e4,
            tied_embeddings=False,
            zero_centred_norm=False,
            embed_scale=None,
            experts=None,
        ),
        mining_eps=1e-5,
        projector="mlp2x_gelu",
    )


def get_demo(size: str = "full") -> ConfigDict:
    """Sizes of the pipeline; "smoke" runs every step of it in about a minute and learns nothing."""
    smoke = size == "smoke"
    c = ConfigDict()
    c.vocab_size = 576
    c.pictures = dict(train=4000, val=200, test=900, new_photos=520)
    c.backgrounds = 1500  # pieces of photographs that the towers' examples are composed on
    c.hr_tower = dict(steps=1400, batch=32, lr=5e-3, canvas=64)
    c.lr_tower = dict(steps=250, batch=128, lr=2e-3, draws=3)
    c.ceiling = dict(steps=1500, batch_size=256)
    c.page_pictures = 12
    # (split, kind) of the questions that each arm answers; "val" is for tuning.
    c.questions = dict(
        mining=[("test", "digit"), ("test", "colour"), ("new_photos", "digit")],
        lr_only=[("test", "digit"), ("test", "colour")],
    )
    if smoke:
        c.pictures = dict(train=48, val=4, test=6, new_photos=6)
        c.backgrounds = 20
        c.lr_tower.draws = 1
        c.hr_tower.steps = c.lr_tower.steps = 4
        c.ceiling.steps = 4
        c.page_pictures = 2
    return c


def get_config(arg=None) -> ConfigDict:
    a = common.parse_arg(arg, stage=2, arm="mining", root="workdir/demo", seed=0, size="full")
    if a.stage not in (1, 2) or a.arm not in ARMS or a.size not in ("full", "smoke"):
        raise ValueError(f"demo config: expected stage 1 or 2, arm in {ARMS}, found {arg!r}")
    smoke = a.size == "smoke"
    c = common.train_config()
    c.seed = a.seed
    c.steps = (4 if smoke else 60) if a.stage == 1 else (12 if smoke else 500)
    before = f"base_{a.arm}" if a.stage == 1 else f"{a.arm}_stage1/model"
    c.init = [(".*", f"{a.root}/{before}")]
    c.dtype = c.frozen_dtype = "float32"
    c.remat = "none"
    c.scan = False
    c.optim.lr = 1e-3
    c.optim.b2 = 0.99
    c.optim.lr_mults = [("(projector|mining)/.*", 2.0)]  # as the paper's largest models
    c.optim.schedule = common.STAGES[a.stage]
    c.data.sources.main.path = f"{a.root}/data/{'pretrain' if a.stage == 1 else 'train'}.json"
    c.data.sources.main.images = f"{a.root}/data"
    c.data.batching = "pad"
    c.data.template = "plain" if a.stage == 1 else "v1"
    c.data.batch = 16 if a.stage == 1 or smoke else 32
    c.data.length = 128
    c.data.workers, c.data.threads = 0, 2
    c.data.cache_features = f"{a.root}/features_{a.arm}"
    c.checkpoint.every = 4 if smoke else 100
    c.log_every = 2 if smoke else 20
    return c
