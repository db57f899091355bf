"""ConvNeXt trunk in timm's names, as MGM stores them (MGM_SPEC 3.1)."""

from __future__ import annotations

from mgm_jax.convert.rules import CONV, DEPTHWISE, Rule, linear, norm, patches
from mgm_jax.models.config import ConvNextConfig


def rules(cfg: ConvNextConfig, stem: str, stages: str) -> list[Rule]:
    """`stem` and `stages` are the names of the two parts, such as `…vision_stem`."""
    table = [
        Rule(f"{stem}.0.weight", "convnext/stem/kernel", CONV, shapes=patches(cfg.patch_size, 3)),
        Rule(f"{stem}.0.bias", "convnext/stem/bias"),
        *norm(f"{stem}.1", "convnext/stem_norm"),
    ]
    for s, depth in enumerate(cfg.depths):
        if s:
            down, conv = f"{stages}.{s}.downsample", patches(2, cfg.widths[s - 1])
            table += norm(f"{down}.0", f"convnext/down_norm_{s}")
            table.append(Rule(f"{down}.1.weight", f"convnext/down_{s}/kernel", CONV, shapes=conv))
            table.append(Rule(f"{down}.1.bias", f"convnext/down_{s}/bias"))
        block, ours, where = f"{stages}.{s}.blocks.{{i}}.", f"convnext/stages_{s}", {"depth": depth}
        conv = patches(cfg.kernel_size, 1)
        table += [
            Rule(f"{block}conv_dw.weight", f"{ours}/dw/kernel", DEPTHWISE, shapes=conv, **where),
            Rule(f"{block}conv_dw.bias", f"{ours}/dw/bias", **where),
            *norm(f"{block}norm", f"{ours}/norm", **where),
            *linear(f"{block}mlp.fc1", f"{ours}/pw1", **where),
            *linear(f"{block}mlp.fc2", f"{ours}/pw2", **where),
            Rule(f"{block}gamma", f"{ours}/gamma", **where),
        ]
    return table
