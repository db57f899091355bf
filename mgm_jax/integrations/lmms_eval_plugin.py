"""What lmms-eval finds of us: `lmms-eval --model mgm_jax --model_args pretrained=DIR ...`.

lmms-eval (0.7) loads this module on every start, so it imports nothing; the model's class is in
`lmms_eval_adapter`.
"""


def manifest():
    """The entry point `lmms_eval.models`: a ModelManifest of our chat model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="mgm_jax",
        chat_class_path="mgm_jax.integrations.lmms_eval_adapter.MGMJax",
        simple_class_path=None,
        aliases=("mini_gemini_jax",),
    )
