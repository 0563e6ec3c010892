"""GPT-2 on the Hugging Face hub: `transformer.h.0.attn.c_attn.weight`, a Conv1D [D 3D], and so on."""

from collections.abc import Iterable

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.gpt import Config, rate
from models.pretrained.config_keys import Keys, hf_activation
from models.pretrained.mapping import Row, layer_norm, same

TYPES = ("gpt2",)
PREFIX = "transformer."
TIED = {"lm_head.weight": "transformer.wte.weight"}  # a copy, if the head is the token embedding


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers' GPT2Config."""
    keys.require_value("scale_attn_weights", True)
    keys.require_value("reorder_and_upcast_attn", False, True)  # it only affects rounding
    return {
        "vocab": keys.take("vocab_size", default=50257),
        "context": keys.take("n_positions", "max_position_embeddings", default=1024),
        "width": keys.take("n_embd", "hidden_size", default=768),
        "depth": keys.take("n_layer", "num_hidden_layers", default=12),
        "heads": keys.take("n_head", "num_attention_heads", default=12),
        "hidden": keys.take("n_inner"),
        "activation": keys.activation("activation_function", default="gelu_new"),
        "dropout_embed": keys.take("embd_pdrop", default=0.1),
        "dropout_attention": keys.take("attn_pdrop", default=0.1),
        "dropout_residual": keys.take("resid_pdrop", default=0.1),
        "scale_by_layer_index": keys.take("scale_attn_by_inverse_layer_idx", default=False),
        "tied": keys.take("tie_word_embeddings", default=True),
        "eps": keys.take("layer_norm_epsilon", default=1e-5),
    }


HARMLESS = frozenset(  # of other heads, and of older files
    """
    n_ctx n_special predict_special_tokens gradient_checkpointing
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    """.split()
)


def config(c: Config) -> Json:
    """The config.json of a Config. Raises UsageError for a Config that GPT-2 cannot express."""
    if c.drop_path:
        raise UsageError(f"a published GPT-2 has drop_path = 0, not {c.drop_path}")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab,
        "n_positions": c.context,
        "n_ctx": c.context,
        "n_embd": c.width,
        "n_layer": c.depth,
        "n_head": c.heads,
        "n_inner": c.hidden,
        "activation_function": hf_activation(c.activation),
        "embd_pdrop": rate(c, "embed"),
        "attn_pdrop": rate(c, "attention"),
        "resid_pdrop": rate(c, "residual"),
        "scale_attn_by_inverse_layer_idx": c.scale_by_layer_index,
        "tie_word_embeddings": c.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "layer_norm_epsilon": c.eps,
    }


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the buffers of the causal mask."""
    return f"{PREFIX}h.*.attn.bias", f"{PREFIX}h.*.attn.masked_bias"


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    V, D, N, H, F = c.vocab, c.width, c.heads, c.head_width, c.feed_forward
    top, layer = PREFIX, f"{PREFIX}h.{{}}."
    found = [
        same("embed/token", f"{top}wte.weight", V, D),
        same("embed/position", f"{top}wpe.weight", c.context, D),
        Row("blocks/qkv/kernel", f"{layer}attn.c_attn.weight", (D, 3, N, H), (1, 0, 2, 3), (D, 3 * D)),
        Row("blocks/qkv/bias", f"{layer}attn.c_attn.bias", (3, N, H), (0, 1, 2), (3 * D,)),
        Row("blocks/out/kernel", f"{layer}attn.c_proj.weight", (N, H, D), (0, 1, 2), (D, D)),
        same("blocks/out/bias", f"{layer}attn.c_proj.bias", D),
        same("blocks/up/kernel", f"{layer}mlp.c_fc.weight", D, F),
        same("blocks/up/bias", f"{layer}mlp.c_fc.bias", F),
        same("blocks/down/kernel", f"{layer}mlp.c_proj.weight", F, D),
        same("blocks/down/bias", f"{layer}mlp.c_proj.bias", D),
    ]
    for ours, theirs in (("blocks/norm1", f"{layer}ln_1"), ("blocks/norm2", f"{layer}ln_2"), ("norm", f"{top}ln_f")):
        found += layer_norm(ours, theirs, D)
    return found if c.tied else [*found, same("head", "lm_head.weight", V, D)]
