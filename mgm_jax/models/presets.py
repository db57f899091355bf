"""The eleven published Mini-Gemini models (MGM_SPEC 1.1 to 1.5) as data.

`MODELS["MGM-7B-HD"]` is an MgmConfig; `mgm(LLMS["gemma_2b"], hd=True)` makes a twelfth, for which
the original has a script but no weights.
"""

from __future__ import annotations

from mgm_jax.models.config import (
    CLIP_MEAN,
    CLIP_STD,
    ClipConfig,
    ConvNextConfig,
    DecoderConfig,
    ExpertsConfig,
    ImageSpec,
    MgmConfig,
)

CLIP_L_336 = ClipConfig(
    image_size=336,
    patch_size=14,
    width=1024,
    layers=24,
    heads=16,
    mlp_dim=4096,
    norm_eps=1e-5,
    act="quick_gelu",
    select_layer=-2,
)
SIGLIP_SO400M_384 = ClipConfig(  # google/siglip-so400m-patch14-384: 27 patches a side, 6 px unseen
    image_size=384,
    patch_size=14,
    width=1152,
    layers=27,
    heads=16,
    mlp_dim=4304,
    norm_eps=1e-6,
    act="gelu_tanh",
    select_layer=-1,
    kind="siglip",
)
CONVNEXT_L = ConvNextConfig(
    widths=(192, 384, 768, 1536), depths=(3, 3, 27, 3), patch_size=4, kernel_size=7, norm_eps=1e-6
)
IMAGE = ImageSpec(lr_size=336, hr_size=768, aspect="pad")
IMAGE_SIGLIP = ImageSpec(  # 864 px: 32 for each of the 27 patches, as ConvNeXt's stride asks
    lr_size=384,
    hr_size=864,
    aspect="pad",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    hr_mean=CLIP_MEAN,
    hr_std=CLIP_STD,
)
IMAGE_HD = ImageSpec(lr_size=336, hr_size=1536, aspect="pad", grid=2, use_global=True)


def _llama(vocab, dim, layers, heads, kv_heads, mlp_dim, theta, experts=None) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        mlp_dim=mlp_dim,
        act="silu",
        norm_eps=1e-5,
        rope_theta=theta,
        tied_embeddings=False,
        zero_centred_norm=False,
        embed_scale=None,
        experts=experts,
    )


LLMS = {
    "gemma_2b": DecoderConfig(
        vocab_size=256000,
        dim=2048,
        layers=18,
        heads=8,
        kv_heads=1,
        head_dim=256,
        mlp_dim=16384,
        act="gelu",
        norm_eps=1e-6,
        rope_theta=1e4,
        tied_embeddings=True,
        zero_centred_norm=True,
        embed_scale="exact",
        experts=None,
    ),
    #                      vocab   dim layers heads kv   mlp   theta
    "vicuna_7b": _llama(32000, 4096, 32, 32, 32, 11008, 1e4),
    "vicuna_13b": _llama(32000, 5120, 40, 40, 40, 13824, 1e4),
    "llama3_8b": _llama(128256, 4096, 32, 32, 8, 14336, 5e5),
    "mistral_7b": _llama(32000, 4096, 32, 32, 8, 14336, 1e6),
    "mixtral_8x7b": _llama(
        32000, 4096, 32, 32, 8, 14336, 1e6, ExpertsConfig(count=8, per_token=2, router_loss=0.0)
    ),
    "yi_34b": _llama(64000, 7168, 60, 56, 8, 20480, 5e6),
}


def mgm(llm: DecoderConfig, *, hd: bool) -> MgmConfig:
    """A Mini-Gemini around a language model: 336/768 px, or with `hd` 672/1536 px in 2x2 crops."""
    return MgmConfig(
        image=IMAGE_HD if hd else IMAGE,
        clip=CLIP_L_336,
        convnext=CONVNEXT_L,
        llm=llm,
        mining_eps=1e-5,
        projector="mlp2x_gelu",
    )


def mgm_siglip(llm: DecoderConfig) -> MgmConfig:
    """A Mini-Gemini with SigLIP in CLIP's place, which the original does not have: 384/864 px."""
    return MgmConfig(
        image=IMAGE_SIGLIP,
        clip=SIGLIP_SO400M_384,
        convnext=CONVNEXT_L,
        llm=llm,
        mining_eps=1e-5,
        projector="mlp2x_gelu",
    )


MODELS = {
    "MGM-2B": mgm(LLMS["gemma_2b"], hd=False),
    "MGM-7B": mgm(LLMS["vicuna_7b"], hd=False),
    "MGM-13B": mgm(LLMS["vicuna_13b"], hd=False),
    "MGM-8B": mgm(LLMS["llama3_8b"], hd=False),
    "MGM-8x7B": mgm(LLMS["mixtral_8x7b"], hd=False),
    "MGM-34B": mgm(LLMS["yi_34b"], hd=False),
    "MGM-7B-HD": mgm(LLMS["vicuna_7b"], hd=True),
    "MGM-13B-HD": mgm(LLMS["vicuna_13b"], hd=True),
    "MGM-8B-HD": mgm(LLMS["llama3_8b"], hd=True),
    "MGM-8x7B-HD": mgm(LLMS["mixtral_8x7b"], hd=True),
    "MGM-34B-HD": mgm(LLMS["yi_34b"], hd=True),
}
