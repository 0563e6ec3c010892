"""What the contract tests share: each family at a tiny size, a batch for it, and a trainer on any mesh."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from configs import base
from models.darknet import Conv, Head, MaxPool, Reorg, Route, Shortcut, Upsample
from models.spec import flatten
from train import mesh
from train.update import leaves, losses, optim, step

B = 16  # rows of a batch: divisible by 8 devices, and by 2 microbatches on them

DETECTOR = (  # all of Darknet's layers, and two grids
    *(Conv(8, stride=2), Conv(8), Shortcut(-2), MaxPool(), Conv(16, activation="mish"), Route((-1,), 2, 1)),
    *(Conv(16, 1, activation="relu"), MaxPool(2, 1), Conv(None, 1, norm=False, activation="linear"), Head((1, 2))),
    *(Route((4,)), Conv(8, 1), Upsample(), Route((-1, 2)), Conv(None, 3, norm=False, activation="linear"), Head((0,))),
)
SINGLE = (*(Conv(8, stride=2), Reorg(), Conv(16), Conv(None, 1, norm=False, activation="linear"), Head((0, 1))),)

# Each family at a tiny size, some in several forms; `family` is the name where none is given.
TINY: dict[str, dict[str, Any]] = {
    "mlp": dict(inputs=16, hidden=(32, 32), classes=4),
    "cnn": dict(inputs=(8, 8, 1), channels=(8, 16), hidden=(32,)),
    "rnn": dict(vocab=100, vocab_multiple=64, context=16, embed=16, width=32, depth=2, projection=16),
    "gru_both_ways": dict(
        family="rnn", head="classes", cell="gru", inputs=4, width=32, bidirectional=True, pool="max", classes=4
    ),
    "elman_values": dict(family="rnn", head="values", cell="elman", inputs=4, width=32, outputs=2),
    "gpt": dict(vocab=100, vocab_multiple=64, context=16, width=32, depth=2, heads=8),
    "llama": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        kv_heads=2,
        hidden=48,
        window=4,
        sliding=(0,),
    ),
    "mixtral": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        kv_heads=2,
        hidden=48,
        expert_hidden=24,
        experts=4,
        dense=(0,),
        qk_norm=True,
    ),
    "gpt_oss": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        kv_heads=2,
        hidden=24,
        experts=4,
        window=4,
        balance=0.01,
        limit=0.02,
    ),
    "grok": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=2,
        heads=8,
        kv_heads=2,
        widening=2.0,
        experts=4,
        balance=0.01,
        soft_cap=0.05,
    ),
    "deepseek": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        hidden=48,
        expert_hidden=16,
        experts=8,
        active=3,
        dense=(0,),
        groups=4,
        kept_groups=2,
        router="sigmoid",
        renormalise=True,
        bias_speed=0.01,
        balance=0.01,
        q_rank=24,
        kv_rank=24,
        nope_dim=8,
        rope_dim=16,
        value_dim=12,
        mtp=1,
        mtp_weight=2.0,
    ),
    "deepseek_softmax": dict(
        family="deepseek",
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=2,
        heads=8,
        expert_hidden=16,
        experts=8,
        groups=4,
        kept_groups=2,
        scaling=2.0,
        kv_rank=12,
        nope_dim=4,
        rope_dim=4,
        value_dim=8,
        neighbours=False,
        shared=2,
        mtp=2,
    ),
    "llama4": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=4,
        heads=8,
        kv_heads=2,
        hidden=48,
        expert_hidden=24,
        experts=4,
        active=2,
        dense=(0, 2),
        nope=(3,),
        chunk=4,
        temperature_from=4,
    ),
    "gemma": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        kv_heads=2,
        hidden=48,
        window=4,
        pattern=3,
        local_base=1000.0,
        query_scale=10.0,
        attention_cap=2.0,
        cap=3.0,
        qk_norm=True,
    ),
    "gemma4": dict(
        vocab=100,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=3,
        heads=8,
        kv_heads=4,
        head_dim=4,
        full_head_dim=8,
        full_kv_heads=2,
        keys_as_values=True,
        hidden=48,
        window=4,
        pattern=3,
        turning=0.5,
        cap=10.0,
        routed=True,
        experts=4,
        expert_hidden=24,
        balance=0.01,
    ),
    "bert": dict(vocab=100, vocab_multiple=64, context=16, width=32, depth=2, heads=8, head="mlm", pooler=False),
    "bert_classes": dict(
        family="bert", vocab=100, context=16, width=32, depth=2, heads=8, head="classes", pool="first", classes=4
    ),
    "transformer": dict(vocab=100, vocab_multiple=64, context=16, width=32, depth=2, heads=8, hidden=48),
    "transformer_pre_norm": dict(
        family="transformer",
        vocab=100,
        source_vocab=90,
        vocab_multiple=64,
        context=16,
        width=32,
        depth=1,
        decoder_depth=2,
        heads=8,
        pre_norm=True,
        positions="learned",
        tied="none",
    ),
    "seq2seq": dict(vocab=100, vocab_multiple=64, context=16, embed=32, width=64, depth=2),
    "seq2seq_additive": dict(
        family="seq2seq",
        vocab=100,
        source_vocab=90,
        vocab_multiple=64,
        context=16,
        embed=32,
        width=64,
        score_width=16,
        attend="additive",
        tied="decoder",
    ),
    "seq2seq_none": dict(
        family="seq2seq",
        vocab=100,
        vocab_multiple=64,
        context=16,
        embed=32,
        width=64,
        bidirectional=False,
        reverse_source=True,
        attend="none",
        tied="none",
    ),
    "vit": dict(inputs=(8, 12, 1), patch=4, width=32, depth=2, heads=8, classes=4),
    "vit_mean": dict(
        family="vit",
        inputs=(8, 8, 1),
        patch=(4, 2),
        width=32,
        depth=3,
        heads=8,
        classes=4,
        pool="mean",
        class_token=False,
        position="sines",
        norm="pooled",
        qkv_bias=False,
        layer_scale=0.5,
    ),
    "yolo": dict(layers=DETECTOR, inputs=(16, 8, 3), classes=3, anchors=((2, 3), (5, 2), (4, 8)), ignore_thresh=0.3),
    "yolo_region": dict(
        family="yolo",
        layers=SINGLE,
        head="region",
        inputs=(8, 16, 3),
        classes=3,
        anchors=((2, 3), (5, 2)),
        ignore_thresh=0.3,
    ),
    "vgg": dict(inputs=1, channels=(8, 16), depths=(1, 2), norm="batch", pool=2, hidden=(32,), classes=10),
    "resnet": dict(inputs=1, stem="cifar", stem_channels=8, depths=(1, 3), channels=(8, 16), classes=10),
    "bottleneck": dict(  # without kinks: a relu of this one stood on its edge, and meshes round to either side of it
        family="resnet",
        inputs=1,
        block="bottleneck",
        stem_channels=8,
        depths=(3, 2),
        channels=(16, 32),
        activation="gelu",
        inner_activation="gelu",
        classes=10,
    ),
    "linen": dict(family="flax", module="examples.linen_cnn:SmallCNN", shape=(8, 8, 1), classes=10),
    "nnx": dict(family="flax", module="examples.nnx_cnn:SmallCNN", shape=(8, 8, 1), classes=10),
}
LOSS = {
    **dict.fromkeys(("rnn", "gpt", "llama", "mixtral", "gpt_oss", "deepseek", "deepseek_softmax"), "next_token"),
    **dict.fromkeys(("llama4", "gemma", "gemma4", "grok", "bert"), "next_token"),
    **dict.fromkeys(("mlp", "cnn", "gru_both_ways", "bert_classes", "linen", "nnx"), "softmax"),
    **dict.fromkeys(("vgg", "resnet", "bottleneck", "vit", "vit_mean"), "softmax"),
    "elman_values": "squared",
    **dict.fromkeys(("transformer", "transformer_pre_norm"), "translation"),
    **dict.fromkeys(("seq2seq", "seq2seq_additive", "seq2seq_none"), "translation"),
    **dict.fromkeys(("yolo", "yolo_region"), "detection"),
}
INPUT = {  # shape of a row of examples
    **dict(mlp=(16,), cnn=(8, 8, 1), gru_both_ways=(6, 4), elman_values=(6, 4), linen=(8, 8, 1), nnx=(8, 8, 1)),
    **dict(vit=(8, 12, 1), vit_mean=(8, 8, 1), yolo=(16, 8, 3), yolo_region=(8, 16, 3)),
    **dict(vgg=(8, 8, 1), resnet=(8, 8, 1), bottleneck=(16, 16, 1)),
}
MESHES = ("dp:8", "fsdp:8", "tp:2,dp:4", "dp:2,fsdp:2,tp:2", "fsdp:2,cp:2,tp:2")
MESHES_OF_EXPERTS = ("dp:2,ep:4", "ep:2,cp:2,tp:2", "fsdp:2,ep:2,tp:2")


def tiny(name: str, **overrides: Any) -> models.Model:
    fields = {**TINY[name], **overrides}
    return models.build(fields.pop("family", name), **fields)


def meshes_of(name: str) -> tuple[str, ...]:
    """Those that the traits and the parts of a model allow; the last is the hardest."""
    return MESHES + (MESHES_OF_EXPERTS if hasattr(tiny(name).config, "experts") else ())


def noisy(name: str, **overrides: Any) -> models.Model:
    """The same with every probability of noise that its Config has, but those that others stand for."""
    fields = vars(tiny(name, **overrides).config)
    noise = [k for k, v in fields.items() if k.startswith(("dropout", "drop_path")) and isinstance(v, float)]
    return tiny(name, **overrides, **dict.fromkeys(noise, 0.25))


def batch_for(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 100, (B, 17)).astype(np.int32)
    two = {  # texts of different lengths, each of two kinds
        "mask": (np.arange(16) < draw.integers(2, 17, B)[:, None]).astype(np.float32),
        "type": (np.arange(16) >= draw.integers(1, 16, B)[:, None]).astype(np.int32),
    }
    if LOSS[name] == "next_token":
        more = two if name == "bert" else {}
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weights(draw, B, 16), **more}
    if LOSS[name] == "translation":
        source = {
            "source": draw.integers(0, 90, (B, 12)).astype(np.int32),
            "source_mask": (np.arange(12) < draw.integers(1, 13, B)[:, None]).astype(np.float32),
        }
        return {**source, "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weights(draw, B, 16)}
    if name == "bert_classes":
        label = draw.integers(0, TINY[name]["classes"], B).astype(np.int32)
        return {"tokens": tokens[:, 1:], **two, "label": label, "weight": weights(draw, B)}
    shape = INPUT[name]
    batch = {"image" if len(shape) == 3 else "features": draw.normal(size=(B, *shape)).astype(np.float32)}
    if name == "gru_both_ways":
        batch["mask"] = (np.arange(shape[0]) < draw.integers(1, shape[0] + 1, B)[:, None]).astype(np.float32)
    if LOSS[name] == "detection":
        corner, size = draw.uniform(0, 0.6, (B, 3, 2)), draw.uniform(0.1, 0.4, (B, 3, 2))
        batch["boxes"] = np.concatenate([corner + size / 2, size], -1).astype(np.float32)
        batch["kinds"] = draw.integers(0, TINY[name]["classes"], (B, 3)).astype(np.int32)
        batch["there"] = (np.arange(3) < draw.integers(0, 4, B)[:, None]).astype(np.float32)
    elif LOSS[name] == "squared":
        batch["target"] = draw.normal(size=(B, TINY[name]["outputs"])).astype(np.float32)
    else:
        batch["label"] = draw.integers(0, TINY[name].get("classes", 10), B).astype(np.int32)
    return {**batch, "weight": weights(draw, B)}


def weights(draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights of all sizes, some of them 0: a mean of means is none of theirs."""
    found = draw.random(shape).astype(np.float32)
    return np.where(draw.random(shape) < 0.2, 0, found).astype(np.float32)


def inputs_of(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {k: jnp.asarray(v) for k, v in batch.items()}


@dataclass
class Trainer:
    """A model's update on a mesh of the first devices."""

    name: str  # a key of TINY
    mesh_text: str = "dp:1"
    accumulate: int = 1
    lr: float = 1e-2
    optimizer: str = "adamw"
    seed: int = 0
    dtype: Any = jnp.float32
    more: dict[str, Any] = field(default_factory=dict)  # of step.Options
    model: models.Model | None = None  # None is the tiny one
    knobs: dict[str, Any] = field(default_factory=dict)  # of the section optim

    def __post_init__(self) -> None:
        self.model = self.model or tiny(self.name)
        count = int(np.prod([int(p.split(":")[1]) for p in self.mesh_text.split(",")]))
        self.place = mesh.place_on(mesh.make_mesh(self.mesh_text, jax.devices()[:count]), self.model.specs)
        self.cfg = base.defaults().optim
        self.cfg.update({"name": self.optimizer, **self.knobs})
        self.tx = optim.make(self.cfg, self.model.specs["params"])
        self.task = losses.TASKS[LOSS[self.name]]
        frozen = leaves.frozen(self.cfg.freeze, self.model.specs["params"])
        options = step.Options(dtype=self.dtype, accumulate=self.accumulate, frozen=frozen, **self.more)
        with jax.set_mesh(self.place.mesh):
            self.state = step.fresh_state(self.model, self.tx, self.place, self.seed, options)
        rate = lambda n: jnp.asarray(self.lr)  # noqa: E731
        self.update = step.make_step(self.model, self.task, self.tx, rate, self.place, options)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {k: jax.device_put(v, self.place.sharding(step.batch_axes(k, v.ndim))) for k, v in batch.items()}

    def steps(self, count: int, first: int = 0, one_batch: bool = False) -> list[float]:
        found = []
        with jax.set_mesh(self.place.mesh):
            for n in range(first, first + count):
                batch = self.put(batch_for(self.name, 0 if one_batch else n))
                self.state, metrics = self.update(self.state, batch)
                found.append(float(metrics["loss"]))
        return found

    def gradient(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of the mean loss, and of what the model adds to it, by path, gathered."""
        grad = step.gradient_of(self.model, self.task, self.place, step.Options(dtype=self.dtype))

        def of(params: Any, stats: Any, batch: Any) -> Any:
            rows = jax.sharding.reshard(jnp.arange(B), self.place("batch"))
            keys = models.row_keys(jax.random.key(7), rows)
            return grad(params, stats, batch, keys, jnp.sum(batch["weight"]), {})[0]

        with jax.set_mesh(self.place.mesh):
            grads = jax.jit(of)(self.state["params"], self.state["stats"], self.put(batch))
            return {k: np.asarray(v) for k, v in flatten(grads).items()}


def assert_gradients_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    """Leaf by leaf, by norm, with a floor for leaves that hardly matter: 0.01 of the whole over sqrt(leaves)."""
    assert got.keys() == want.keys()
    whole = np.sqrt(sum(float(np.sum(np.square(g))) for g in want.values()))
    floor = 0.01 * whole / np.sqrt(len(want))
    for name, b in want.items():
        error = float(np.linalg.norm(got[name] - b))
        assert error <= tolerance * max(float(np.linalg.norm(b)), floor), f"{name}: {error} of {np.linalg.norm(b)}"
