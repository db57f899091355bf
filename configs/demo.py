"""The demo: a small, whole Mini-Gemini that a laptop trains in minutes (`mgm-jax demo`).

`get_config("stage=2,arm=mining,root=DIR")` is one of its four training runs, as the demo itself
starts them; `get_demo` is the pipeline around them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from mgm_jax.configs import common

ARMS = ("mining", "lr_only")


def model(vocab_size: int, arm: str) -> dict:
    """224 px pictures, of which the low-resolution encoder sees 28 px: 49 visual tokens."""
    return dict(
        image=dict(lr_size=28, hr_size=224, aspect="pad"),
        clip=dict(
            image_size=28,
            patch_size=4,
            width=96,
            layers=4,
            heads=4,
            mlp_dim=256,
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
        ),
        mining_eps=1e-5,
        projector="mlp2x_gelu",
    )


def get_demo(size: str = "full") -> ConfigDict:
    """Sizes of the pipeline; "smoke" runs every step of it in about a minute and learns nothing."""
    smoke = size == "smoke"
    c = ConfigDict()
    c.vocab_size = 576
    c.pictures = dict(train=3000, val=300, test=600, new_photos=600)  # two questions each
    c.backgrounds = 1500  # pieces of photographs that the towers' examples are composed on
    c.hr_tower = dict(steps=1000, batch=32, lr=3e-3, canvas=64)
    c.lr_tower = dict(steps=1000, batch=64, lr=2e-3)
    c.ceiling = dict(steps=3000, batch_size=256)
    c.page_pictures = 12
    if smoke:
        c.pictures = dict(train=48, val=4, test=6, new_photos=6)
        c.backgrounds = 20
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
    c.steps = (4 if smoke else 100) if a.stage == 1 else (12 if smoke else 1200)
    before = f"base_{a.arm}" if a.stage == 1 else f"{a.arm}_stage1/model"
    c.init = [(".*", f"{a.root}/{before}")]
    c.dtype = c.frozen_dtype = "float32"
    c.remat = "none"
    c.scan = False
    c.optim.lr = 1.5e-3
    c.optim.b2 = 0.99
    c.optim.schedule = common.STAGES[a.stage]
    c.data.json = f"{a.root}/data/{'pretrain' if a.stage == 1 else 'train'}.json"
    c.data.images = f"{a.root}/data"
    c.data.template = "plain" if a.stage == 1 else "v1"
    c.data.batch = 16
    c.data.length = 144
    c.data.threads = 2
    c.data.cache_features = f"{a.root}/features_{a.arm}"
    c.checkpoint.every = 4 if smoke else 200
    c.log_every = 2 if smoke else 20
    return c
