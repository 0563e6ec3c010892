"""The contract's cases: every family at a tiny size, some in several variants, with a batch for each."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from models.blocks.vision.darknet import Conv, Head, MaxPool, Reorg, Route, Shortcut, Upsample
from models.core.spec import Spec, ones, path_name

B = 16  # rows of a batch: divisible by 8 devices, and by 2 microbatches on them
T = 16  # tokens of a row

DETECTOR = (  # all of Darknet's layers, and two grids
    *(Conv(8, stride=2), Conv(8), Shortcut(-2), MaxPool(), Conv(16, activation="mish"), Route((-1,), 2, 1)),
    *(Conv(16, 1, activation="relu"), MaxPool(2, 1), Conv(None, 1, norm=False, activation="linear"), Head((1, 2))),
    *(Route((4,)), Conv(8, 1), Upsample(), Route((-1, 2)), Conv(None, 3, norm=False, activation="linear"), Head((0,))),
)
SINGLE = (*(Conv(8, stride=2), Reorg(), Conv(16), Conv(None, 1, norm=False, activation="linear"), Head((0, 1))),)

TEXT = dict(vocab=100, context=T, width=32, heads=8)
LM = TEXT | dict(vocab_multiple=64)
GROUPED = LM | dict(kv_heads=2)
PAIRS = dict(vocab=100, vocab_multiple=64, context=T)
OWN = dict(shape=(8, 8, 1), classes=10)  # a Flax module of one's own
RECURRENT_PAIRS = PAIRS | dict(embed=32, width=64)


@dataclass(frozen=True)
class Case:
    """A family's fields at a tiny size, the loss that it is trained by, and the shape of an input's row."""

    family: str
    loss: str
    fields: dict[str, Any]
    row: tuple[int, ...] = ()


CASES = {
    "mlp": Case("mlp", "softmax", dict(inputs=16, hidden=(32, 32), classes=4), (16,)),
    "cnn": Case("cnn", "softmax", dict(inputs=(8, 8, 1), channels=(8, 16), hidden=(32,)), (8, 8, 1)),
    "rnn": Case("rnn", "next_token", PAIRS | dict(embed=16, width=32, depth=2, projection=16)),
    "gru_both_ways": Case(
        "rnn",
        "softmax",
        dict(head="classes", cell="gru", inputs=4, width=32, bidirectional=True, pool="max", classes=4),
        (6, 4),
    ),
    "elman_values": Case("rnn", "mse", dict(head="values", cell="elman", inputs=4, width=32, outputs=2), (6, 4)),
    "gpt": Case("gpt", "next_token", LM | dict(depth=2)),
    "llama": Case("llama", "next_token", GROUPED | dict(depth=3, hidden=48, window=4, sliding_layers=(0,))),
    "mixtral": Case(
        "mixtral",
        "next_token",
        GROUPED | dict(depth=3, hidden=48, expert_hidden=24, experts=4, dense_layers=(0,), qk_norm=True),
    ),
    "gpt_oss": Case(
        "gpt_oss",
        "next_token",
        GROUPED | dict(depth=3, hidden=24, experts=4, window=4, aux_loss_weight=0.01, swiglu_limit=0.02),
    ),
    "grok": Case(
        "grok",
        "next_token",
        GROUPED | dict(depth=2, widening=2.0, experts=4, aux_loss_weight=0.01, attn_logit_softcap=0.05),
    ),
    "deepseek": Case(
        "deepseek",
        "next_token",
        LM
        | dict(
            depth=3,
            hidden=48,
            expert_hidden=16,
            experts=8,
            experts_per_token=3,
            dense_layers=(0,),
            expert_groups=4,
            topk_groups=2,
        )
        | dict(router="sigmoid", norm_topk=True, bias_update_speed=0.01, aux_loss_weight=0.01, mtp=1, mtp_weight=2.0)
        | dict(q_rank=24, kv_rank=24, nope_dim=8, rope_dim=16, value_dim=12),
    ),
    "deepseek_softmax": Case(
        "deepseek",
        "next_token",
        LM
        | dict(
            depth=2,
            expert_hidden=16,
            experts=8,
            expert_groups=4,
            topk_groups=2,
            routed_scaling_factor=2.0,
            shared=2,
            mtp=2,
        )
        | dict(kv_rank=12, nope_dim=4, rope_dim=4, value_dim=8, rope_interleaved=False),
    ),
    "llama4": Case(
        "llama4",
        "next_token",
        GROUPED
        | dict(depth=4, hidden=48, expert_hidden=24, experts=4, experts_per_token=2, dense_layers=(0, 2))
        | dict(nope_layers=(3,), chunk=4, floor_scale=4),
    ),
    "gemma": Case(
        "gemma",
        "next_token",
        GROUPED
        | dict(
            depth=3,
            hidden=48,
            window=4,
            sliding_pattern=3,
            rope_local_base=1000.0,
            query_pre_attn_scalar=10.0,
            attn_logit_softcap=2.0,
        )
        | dict(final_logit_softcap=3.0, qk_norm=True),
    ),
    "gemma4": Case(
        "gemma4",
        "next_token",
        LM
        | dict(depth=3, kv_heads=4, head_dim=4, full_head_dim=8, full_kv_heads=2, k_eq_v=True, hidden=48)
        | dict(
            window=4,
            sliding_pattern=3,
            partial_rotary_factor=0.5,
            final_logit_softcap=10.0,
            enable_moe_block=True,
            experts=4,
            expert_hidden=24,
            aux_loss_weight=0.01,
        ),
    ),
    "bert": Case("bert", "next_token", LM | dict(depth=2, head="mlm", pooler=False)),
    "bert_classes": Case("bert", "softmax", TEXT | dict(depth=2, head="classes", pool="first", classes=4)),
    "transformer": Case("transformer", "translation", LM | dict(depth=2, hidden=48)),
    "transformer_pre_norm": Case(
        "transformer",
        "translation",
        LM | dict(source_vocab=90, depth=1, decoder_depth=2, pre_norm=True, positions="learned", tied="none"),
    ),
    "seq2seq": Case("seq2seq", "translation", RECURRENT_PAIRS | dict(depth=2)),
    "seq2seq_additive": Case(
        "seq2seq",
        "translation",
        RECURRENT_PAIRS | dict(source_vocab=90, score_width=16, attention_score="additive", tied="decoder"),
    ),
    "seq2seq_none": Case(
        "seq2seq",
        "translation",
        RECURRENT_PAIRS | dict(bidirectional=False, reverse_source=True, attention_score="none", tied="none"),
    ),
    "vit": Case("vit", "softmax", dict(inputs=(8, 12, 1), patch=4, width=32, depth=2, heads=8, classes=4), (8, 12, 1)),
    "vit_mean": Case(
        "vit",
        "softmax",
        dict(inputs=(8, 8, 1), patch=(4, 2), width=32, depth=3, heads=8, classes=4, pool="mean", class_token=False)
        | dict(position="sines", norm="pooled", qkv_bias=False, layer_scale=0.5),
        (8, 8, 1),
    ),
    "yolo": Case(
        "yolo",
        "detection",
        dict(layers=DETECTOR, inputs=(16, 8, 3), classes=3, anchors=((2, 3), (5, 2), (4, 8)), ignore_thresh=0.3),
        (16, 8, 3),
    ),
    "yolo_region": Case(
        "yolo",
        "detection",
        dict(layers=SINGLE, head="region", inputs=(8, 16, 3), classes=3, anchors=((2, 3), (5, 2)), ignore_thresh=0.3),
        (8, 16, 3),
    ),
    "vgg": Case(
        "vgg",
        "softmax",
        dict(inputs=1, channels=(8, 16), depths=(1, 2), norm="batch", pool=2, hidden=(32,), classes=10),
        (8, 8, 1),
    ),
    "resnet": Case(
        "resnet",
        "softmax",
        dict(inputs=1, stem="cifar", stem_channels=8, depths=(1, 3), channels=(8, 16), classes=10),
        (8, 8, 1),
    ),
    "bottleneck": Case(  # without kinks: a relu of this one stood on its edge, and meshes round to either side of it
        "resnet",
        "softmax",
        dict(inputs=1, block="bottleneck", stem_channels=8, depths=(3, 2), channels=(16, 32), classes=10)
        | dict(activation="gelu", inner_activation="gelu"),
        (16, 16, 1),
    ),
    "linen": Case(
        "flax", "softmax", dict(module="examples.linen_cnn:SmallCNN", shape=(8, 8, 1), classes=10), (8, 8, 1)
    ),
    "nnx": Case("flax", "softmax", dict(module="examples.nnx_cnn:SmallCNN", shape=(8, 8, 1), classes=10), (8, 8, 1)),
}
MESHES = ("dp:8", "fsdp:8", "tp:2,dp:4", "dp:2,fsdp:2,tp:2", "fsdp:2,cp:2,tp:2")
MESHES_OF_EXPERTS = ("dp:2,ep:4", "ep:2,cp:2,tp:2", "fsdp:2,ep:2,tp:2")


def tiny_model(name: str, **overrides: Any) -> models.Model:
    return models.build(CASES[name].family, **{**CASES[name].fields, **overrides})


def meshes_for(name: str) -> tuple[str, ...]:
    """The meshes that a model supports."""
    return MESHES + (MESHES_OF_EXPERTS if hasattr(tiny_model(name).config, "experts") else ())


def hardest(name: str) -> str:
    """The mesh on which a family is always tried; with `second` it is on every strategy that there is."""
    return "fsdp:2,ep:2,tp:2" if hasattr(tiny_model(name).config, "experts") else "fsdp:2,cp:2,tp:2"


def second(name: str) -> str:
    """The other mesh on which a family is tried."""
    return "dp:2,ep:2,cp:2" if hasattr(tiny_model(name).config, "experts") else "dp:2,fsdp:2,tp:2"


def with_dropout(name: str, **overrides: Any) -> models.Model:
    """The tiny model with all its dropout and drop-path rates at 0.25, except rates that default to another field."""
    fields = vars(tiny_model(name, **overrides).config)
    noise = [k for k, v in fields.items() if k.startswith(("dropout", "drop_path")) and isinstance(v, float)]
    return tiny_model(name, **overrides, **dict.fromkeys(noise, 0.25))


def batch_for(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    draw, case = np.random.default_rng(seed), CASES[name]
    tokens = draw.integers(0, 100, (B, T + 1)).astype(np.int32)
    two = {  # texts of different lengths, each of two kinds
        "mask": (np.arange(T) < draw.integers(2, T + 1, B)[:, None]).astype(np.float32),
        "token_type": (np.arange(T) >= draw.integers(1, T, B)[:, None]).astype(np.int32),
    }
    if case.loss == "next_token":
        more = two if name == "bert" else {}
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weights(draw, B, T), **more}
    if case.loss == "translation":
        source = {
            "source": draw.integers(0, 90, (B, 12)).astype(np.int32),
            "source_mask": (np.arange(12) < draw.integers(1, 13, B)[:, None]).astype(np.float32),
        }
        return {**source, "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weights(draw, B, T)}
    if name == "bert_classes":
        label = draw.integers(0, case.fields["classes"], B).astype(np.int32)
        return {"tokens": tokens[:, 1:], **two, "label": label, "weight": weights(draw, B)}
    batch = {"image" if len(case.row) == 3 else "features": draw.normal(size=(B, *case.row)).astype(np.float32)}
    if name == "gru_both_ways":
        batch["mask"] = (np.arange(case.row[0]) < draw.integers(1, case.row[0] + 1, B)[:, None]).astype(np.float32)
    if case.loss == "detection":
        corner, size = draw.uniform(0, 0.6, (B, 3, 2)), draw.uniform(0.1, 0.4, (B, 3, 2))
        batch["boxes"] = np.concatenate([corner + size / 2, size], -1).astype(np.float32)
        batch["box_labels"] = draw.integers(0, case.fields["classes"], (B, 3)).astype(np.int32)
        batch["box_mask"] = (np.arange(3) < draw.integers(0, 4, B)[:, None]).astype(np.float32)
    elif case.loss == "mse":
        batch["target"] = draw.normal(size=(B, case.fields["outputs"])).astype(np.float32)
    else:
        batch["label"] = draw.integers(0, case.fields.get("classes", 10), B).astype(np.int32)
    return {**batch, "weight": weights(draw, B)}


def weights(draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights, some of them 0, so that a mean of means differs from the weighted mean."""
    found = draw.random(shape).astype(np.float32)
    return np.where(draw.random(shape) < 0.2, 0, found).astype(np.float32)


def to_inputs(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v) for k, v in batch.items()}


def random_variables(model: models.Model, seed: int = 0) -> dict[str, Any]:
    """Variables drawn by numpy, which compiles nothing: no leaf is all 0 or all 1, as initial values may be."""
    draw = np.random.default_rng(seed)

    def leaf(path: tuple[Any, ...], spec: Spec) -> np.ndarray:
        noise = draw.normal(size=spec.shape).astype(spec.dtype or np.float32)
        if spec.init is ones or path_name(path).endswith("/var"):
            return 1 + 0.1 * noise.clip(-3, 3)  # scales, and variances, are positive
        return noise * (spec.fan_in_size**-0.5 if spec.fan_in else 0.1)

    return jax.tree_util.tree_map_with_path(leaf, model.specs)
