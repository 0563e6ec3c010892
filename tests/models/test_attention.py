"""Attention by every backend: each equals the reference, or refuses by name; the reference equals plain numpy."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from errors import UsageError
from models.blocks.attention import attention, blockwise, kernels
from models.blocks.attention.attention import BACKENDS, CHOICES, FEATURES
from models.blocks.attention.mask import AttentionMask
from models.core.gradients import plain_gradients
from models.core.layers import per_row_keys
from models.core.spec import Spec, zeros
from tests.support import ROOT
from tests.support.cases import random_variables, tiny_model
from train.sharding import mesh

B, T, N, H = 4, 128, 4, 8  # 128 tokens are the least that the TPU's kernel takes

# A call that asks for each feature and for nothing else that a backend may lack.
ASKS: dict[str, dict[str, Any]] = {
    "positions": dict(padding=True),
    "segments": dict(segments=True),
    "window": dict(window=5),
    "both ways": dict(causal=False),
    "window both ways": dict(window=5, causal=False),
    "groups": dict(kv_heads=2),
    "dropout": dict(dropout_rate=0.25),
    "soft cap": dict(logit_softcap=1.5),
    "sinks": dict(sinks=True),
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
}
TOGETHER = dict(segments=True, window=20, kv_heads=2, logit_softcap=1.5, sinks=True)


def case(
    *,
    dtype: str = "float32",
    length: int = T,
    width: int = H,
    kv_heads: int = N,
    sinks: bool = False,
    padding: bool = False,
    segments: bool = False,
    window: int | None = None,
    causal: bool = True,
    **more: Any,
) -> tuple[dict[str, Any], AttentionMask, dict[str, Any]]:
    """Arrays to differentiate by, what is seen, and the rest of a call."""
    draw = np.random.default_rng(0)
    shapes = {"q": (B, length, N, width), "k": (B, length, kv_heads, width), "v": (B, length, kv_heads, width)}
    arrays = {name: jnp.asarray(draw.normal(size=shape).astype(jnp.dtype(dtype))) for name, shape in shapes.items()}
    if sinks:
        arrays["sinks"] = jnp.asarray(draw.normal(size=N).astype(np.float32))
    at = np.arange(length, dtype=np.int32)[None]
    if padding:  # on the left, of another length in each row
        at = np.maximum(at - draw.integers(0, length // 2, (B, 1)), -1).astype(np.int32)
    at = jnp.asarray(at)
    own = jnp.asarray(np.sort(draw.integers(0, 4, (B, length))).astype(np.int32))
    mask = AttentionMask(at, at, (own, own) if segments else None, window, causal, contiguous=not padding)
    if "dropout_rate" in more:
        more["keys"] = per_row_keys(jax.random.key(0), jnp.arange(B))
    return arrays, mask, {"scale": width**-0.5, **more}


def value_and_gradients(call: Callable[..., Any], arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    def total(arrays: dict[str, Any]) -> tuple[Any, Any]:
        out = call(**arrays)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return {name: np.asarray(x, np.float32) for name, x in {"out": out, **gradients}.items()}


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """Elements in float32; in bfloat16, whose products round at other places, norms: to four of its last digits."""
    assert got.keys() == want.keys()
    for name, b in want.items():
        if dtype == "float32":
            np.testing.assert_allclose(got[name], b, rtol=2e-5, atol=2e-5, err_msg=name)
        else:
            assert np.linalg.norm(got[name] - b) <= 4 * 2**-8 * np.linalg.norm(b), name


# The reference


def by_hand(arrays: dict[str, Any], mask: AttentionMask, scale: float, logit_softcap: float) -> np.ndarray:
    """Attention by loops over rows, heads, queries and keys, in float64."""
    q, k, v, sinks = (np.asarray(arrays[name], np.float64) for name in ("q", "k", "v", "sinks"))
    out, own, group = np.zeros_like(q), np.asarray(mask.segments[0]), q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [s for s in range(t + 1) if t - s < mask.window and own[b, s] == own[b, t]]
        scores = [logit_softcap * np.tanh(scale * q[b, t, n] @ k[b, s, n // group] / logit_softcap) for s in seen]
        total = sum(np.exp(scores)) + np.exp(sinks[n])
        out[b, t, n] = sum(np.exp(x) / total * v[b, s, n // group] for x, s in zip(scores, seen, strict=True))
    return out


def test_the_reference_is_what_loops_give() -> None:
    """Window, segments, groups, soft cap and sinks at once."""
    arrays, mask, how = case(length=12, **{**TOGETHER, "window": 4})
    got = jax.jit(partial(attention.attention, mask=mask, **how))(**arrays)
    np.testing.assert_allclose(got, by_hand(arrays, mask, **how), rtol=2e-5, atol=2e-5)


def test_what_is_seen_both_ways_and_through_padding() -> None:
    """Padding sees padding; a window reaches as far to each side; a causal query sees itself and what is before."""
    at = jnp.asarray([[-1, -1, 0, 1, 2, 3]])
    pictures = (
        ({}, ["110000", "110000", "001000", "001100", "001110", "001111"]),
        (dict(causal=False), ["110000", "110000", "001111", "001111", "001111", "001111"]),
        (dict(causal=False, window=2), ["110000", "110000", "001100", "001110", "000111", "000011"]),
    )
    for how, picture in pictures:
        assert ["".join(map(str, row)) for row in np.asarray(AttentionMask(at, at, **how).array[0], int)] == picture


# The backends


@pytest.fixture
def kernel_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU's kernel, interpreted on the CPU."""
    run = attention.with_shard_map(partial(kernels.splash, interpret=True))
    monkeypatch.setitem(BACKENDS, "splash", dataclasses.replace(BACKENDS["splash"], run=run, platforms=("cpu",)))


@cache
def reference(ask: str, dtype: str) -> dict[str, np.ndarray]:
    """What it gives when it is asked for one thing."""
    arrays, mask, how = case(**{"dtype": dtype, **ASKS[ask]})
    return value_and_gradients(partial(attention.attention, mask=mask, **how), arrays)


def hold(backend: str, ask: str) -> None:
    """A backend asked for one thing equals the reference, forward and backward, or refuses it by its name."""
    plain = "float32" if "float32" in BACKENDS[backend].supports else "bfloat16"
    chosen = {"dtype": plain, **ASKS[ask]}
    arrays, mask, how = case(**chosen)
    call = partial(attention.attention, mask=mask, **how)
    if ask in BACKENDS[backend].supports:
        got = value_and_gradients(partial(call, backend=backend), arrays)
        assert_close(got, reference(ask, plain), chosen["dtype"])
        return
    able = [name for name, b in BACKENDS.items() if ask in b.supports and jax.default_backend() in b.platforms]
    says = f"attention = '{backend}' does not support {FEATURES[ask]}. Backends that do: {', '.join(able)}"
    with pytest.raises(UsageError, match=re.escape(says)):
        call(**arrays, backend=backend)


# What other asks have in them too, or what the kernel is asked for below at once.
LATE = {
    **dict.fromkeys([("xla", "window"), ("xla", "float32"), ("splash", "window both ways")], pytest.mark.slow),
    **dict.fromkeys([("splash", ask) for ask in ("window", "groups", "soft cap", "sinks")], pytest.mark.weekly),
}
MATRIX = [
    pytest.param(backend, ask, marks=LATE.get((backend, ask), ()))
    for backend in ("xla", "blockwise", "splash")
    for ask in ASKS
]


@pytest.mark.parametrize(("backend", "ask"), MATRIX)
def test_a_backend_equals_the_reference_or_refuses_by_name(backend: str, ask: str, kernel_here: None) -> None:
    hold(backend, ask)


@pytest.mark.gpu
def test_cudnn_equals_the_reference_or_refuses_by_name() -> None:
    """In a process that sees the GPU, which this one does not."""
    program = "from tests import test_attention as t\nfor ask in t.ASKS: t.hold('cudnn', ask)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_kernel_takes_all_its_features_at_once(kernel_here: None) -> None:
    """Over several blocks of keys and of queries, by a scale that is known when it runs."""
    arrays, mask, how = case(length=3 * T, **TOGETHER)
    call = partial(attention.attention, mask=mask, **{**how, "scale": jnp.asarray(how["scale"])})
    assert_close(value_and_gradients(partial(call, backend="splash"), arrays), value_and_gradients(call, arrays))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries in at most three stages: of 100 queries two blocks a stage, and a last one of four."""
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(blockwise, "STAGES", 3)


@pytest.mark.parametrize(
    "asked",
    [TOGETHER, dict(padding=True, kv_heads=2), dict(window=20, causal=False)],
    ids=["together", "padding", "both ways"],
)
def test_blocks_in_loops_equal_the_reference(asked: dict[str, Any], small_blocks: None) -> None:
    """Several blocks a stage, keys that start within the row, a last block that is shorter."""
    arrays, mask, how = case(length=100, **asked)
    call = partial(attention.attention, mask=mask, **how)
    assert_close(value_and_gradients(partial(call, backend="blockwise"), arrays), value_and_gradients(call, arrays))


def test_blockwise_reads_the_keys_that_are_seen_and_no_others(small_blocks: None) -> None:
    """Every key that a query attends to is read; of 100 x 100 pairs few others are."""
    for asked, pairs in ((dict(), 6544), (dict(window=20), 3356), (dict(window=20, causal=False), 5180)):
        mask = case(length=100, **asked)[1]
        read, count = np.zeros((100, 100), bool), 0
        for stage in blockwise.make_stages(100, 100, mask):
            for first in range(stage.start, stage.start + stage.blocks * stage.size, stage.size):
                key = int(blockwise._Block(stage, first, mask, blockwise._Scoring(1.0, None))._first_key(100))
                read[first : first + stage.size, key : key + stage.keys] = True
                count += stage.size * stage.keys
        assert not np.any(np.asarray(mask.array[0]) & ~read)
        assert count == read.sum() == pairs


def test_blockwise_reads_every_key_where_indices_are_not_known(small_blocks: None) -> None:
    """With padding, and where keys are of another sequence."""
    mask = case(length=100, padding=True)[1]
    assert {stage.keys for stage in blockwise.make_stages(100, 100, mask)} == {100}
    mask = dataclasses.replace(mask, contiguous=True)
    assert {stage.keys for stage in blockwise.make_stages(100, 90, mask)} == {90}


def test_values_of_another_width_and_a_query_without_a_key(small_blocks: None) -> None:
    """A query that attends to nothing gets the mean of all values, as from the reference, and so do gradients."""
    arrays, mask, how = case(length=40, padding=True, causal=False)
    arrays["v"] = arrays["v"][..., :5]
    mask = dataclasses.replace(mask, q_index=jnp.full_like(mask.q_index, -1), k_index=jnp.zeros_like(mask.k_index))
    call = partial(attention.attention, mask=mask, **how)
    assert_close(value_and_gradients(partial(call, backend="blockwise"), arrays), value_and_gradients(call, arrays))


def test_the_gradient_of_a_gradient_by_blocks(small_blocks: None) -> None:
    """In `plain_gradients` JAX derives the loops: second derivatives equal the reference's."""
    arrays, mask, how = case(length=40)

    def second(q: Any, backend: str) -> Any:
        def total(q: Any) -> Any:
            return jnp.sum(jnp.sin(attention.attention(q, arrays["k"], arrays["v"], mask, backend=backend, **how)))

        return jax.jit(lambda q: jax.jvp(jax.grad(total), (q,), (jnp.cos(q),))[1])(q)

    with plain_gradients():
        got, want = (second(arrays["q"], backend) for backend in ("blockwise", "reference"))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_memory_of_blocks_grows_with_time_and_not_with_its_square() -> None:
    """Temporary bytes of forward and backward pass at four times the time: four times, where the reference has 16."""

    def temporaries(length: int, backend: str) -> int:
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        at = jnp.arange(length)[None]
        call = partial(attention.attention, mask=AttentionMask(at, at, contiguous=True), scale=1.0, backend=backend)
        program = jax.jit(jax.grad(lambda *qkv: jnp.sum(call(*qkv)), (0, 1, 2))).lower(x, x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(16384, "blockwise") < 5 * temporaries(4096, "blockwise")
    assert 3 * temporaries(4096, "blockwise") < temporaries(4096, "reference")


# auto


@pytest.mark.parametrize(
    ("asked", "backend"),
    [
        (dict(), "blockwise"),
        (dict(window=5, segments=True, kv_heads=2), "blockwise"),
        (dict(length=64), "reference"),
        (dict(causal=False), "reference"),
        (dict(padding=True), "reference"),
        (dict(dropout_rate=0.1), "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_auto_takes_blocks_on_cpu_where_they_skip_keys(asked: dict[str, Any], backend: str) -> None:
    """The programs are those of the backend that it takes."""
    arrays, mask, how = case(**asked)
    call = partial(attention.attention, mask=mask, **how)
    programs = [str(jax.make_jaxpr(partial(call, backend=name))(**arrays)) for name in ("auto", backend)]
    assert _without_addresses(programs[0]) == _without_addresses(programs[1])


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)


def test_auto_takes_the_reference_under_cp_and_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.choose_backend({"float32"}, T, T) == "blockwise"
    assert attention.choose_backend({"float32", "cp"}, T, T) == "reference"
    monkeypatch.setattr(attention, "compile_platform", lambda: "tpu")
    assert attention.choose_backend({"float32"}, T, T) == "reference"
    assert tiny_model("gpt").config.attention == "auto" in CHOICES


@pytest.mark.parametrize(
    ("backend", "asked", "says"),
    [
        (
            "cudnn",
            dict(dtype="bfloat16"),
            "attention = 'cudnn' does not support the platform cpu. Backends that do: reference, xla, blockwise",
        ),
        ("cudnn", dict(), "float32; the platform cpu"),
        ("cudnn", dict(dtype="bfloat16", width=12), "heads of width 12, not a multiple of 8;"),
        ("splash", dict(), "attention = 'splash' does not support the platform cpu"),
        ("splash", dict(length=100), "100 tokens, not a multiple of 128;"),
        ("xla", dict(sinks=True, dropout_rate=0.1), "dropout on the weights; sinks. Backends that do: reference"),
    ],
)
def test_what_a_backend_lacks_is_named_with_those_that_have_it(backend: str, asked: dict[str, Any], says: str) -> None:
    arrays, mask, how = case(**asked)
    with pytest.raises(UsageError, match=re.escape(says)):
        attention.attention(**arrays, mask=mask, backend=backend, **how)


def test_cudnn_is_called_on_each_devices_own_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the test reads the lowered program: it calls cuDNN's kernels, forward and backward."""
    inside = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(inside, "check_cudnn_version", lambda: 91000)
    monkeypatch.setitem(BACKENDS, "cudnn", dataclasses.replace(BACKENDS["cudnn"], platforms=("cpu",)))
    arrays, mask, how = case(dtype="bfloat16", length=16, window=5, kv_heads=2)
    place = on("dp:2,tp:2", 2)

    def total(q: Any, k: Any, v: Any) -> Any:
        out = attention.attention(q, k, v, mask, backend="cudnn", place=place, **how)
        return jnp.sum(out.astype(jnp.float32))

    with jax.set_mesh(place.mesh):
        put = [jax.device_put(x, place.sharding("batch key heads head_dim")) for x in arrays.values()]
        program = (
            jax.jit(jax.value_and_grad(total, (0, 1, 2))).trace(*put).lower(lowering_platforms=("cuda",)).as_text()
        )
    called = re.findall(r"custom_call @(\S+?)\((?:.*)sliding_window_length\\22: (\d+)(?:.*): \((tensor<\S+>)", program)
    assert called == [(f"__cudnn$fmhaSoftmax{part}", "5", "tensor<2x16x2x8xbf16>") for part in ("", "Backward")]


# Meshes


def on(text: str, kv_heads: int) -> mesh.Placement:
    """The placement of a model with so many heads of keys."""
    count = int(np.prod([int(part.split(":")[1]) for part in text.split(",")]))
    table = {"k": Spec((kv_heads, H), "kv_heads head_dim", zeros)}
    return mesh.make_placement(mesh.make_mesh(text, jax.devices()[:count]), table)


@pytest.mark.parametrize(
    ("backend", "text", "kv_heads"),
    [
        pytest.param("xla", "dp:4", 4, marks=pytest.mark.weekly),
        ("xla", "dp:2,fsdp:2,tp:2", 2),
        ("xla", "fsdp:2,cp:2,tp:2", 1),
        ("reference", "dp:2,cp:2,tp:2", 1),
        ("blockwise", "fsdp:2,cp:2,tp:2", 1),
        ("blockwise", "dp:2,tp:2", 2),
        pytest.param("splash", "dp:2,tp:2", 2, marks=pytest.mark.weekly),
        ("splash", "fsdp:4,tp:2", 1),
    ],
)
def test_sharded_equals_whole(backend: str, text: str, kv_heads: int, kernel_here: None) -> None:
    """Rows, heads and queries cut; keys of one head for all devices, or of one each; sinks where there are any."""
    asked = dict(segments=True, window=20, kv_heads=kv_heads, sinks="sinks" in BACKENDS[backend].supports)
    arrays, mask, how = case(**asked)
    want, place = value_and_gradients(partial(attention.attention, mask=mask, **how), arrays), on(text, kv_heads)
    kv = "batch key kv_heads head_dim"
    axes = {"q": "batch seq heads head_dim", "k": kv, "v": kv, "sinks": "heads"}
    with jax.set_mesh(place.mesh):
        put = {name: jax.device_put(x, place.sharding(axes[name])) for name, x in arrays.items()}
        rows = place.sharding("batch query")
        seen = dataclasses.replace(mask, segments=jax.device_put(mask.segments, rows))
        call = partial(attention.attention, mask=seen, backend=backend, place=place, **how)
        assert_close(value_and_gradients(call, put), want)


def test_a_backend_that_cannot_have_time_cut_says_so(kernel_here: None) -> None:
    arrays, mask, how = case()
    place = on("cp:2", N)
    with jax.set_mesh(place.mesh), pytest.raises(UsageError, match=r"'splash' does not support time sharded by .* cp"):
        attention.attention(**arrays, mask=mask, backend="splash", place=place, **how)


# Models


@pytest.mark.parametrize(
    ("name", "backend", "shape"),
    [("gpt", "xla", dict(scale_by_layer_index=True)), ("llama", "splash", dict(context=T, depth=2, window=20))],
)
def test_a_model_asks_by_its_config(name: str, backend: str, shape: dict[str, Any], kernel_here: None) -> None:
    """The backend changes rounding only."""
    plain, other = tiny_model(name, **shape), tiny_model(name, attention=backend, **shape)
    tokens = np.random.default_rng(0).integers(0, 100, (2, plain.config.context))
    got, want = jax.jit(lambda *v: (other.predict(*v), plain.predict(*v)))(random_variables(plain), tokens)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_a_model_decodes_by_the_reference_whatever_trained_it() -> None:
    """A run made elsewhere is sampled from here; what needs its backend refuses."""
    plain, other = tiny_model("llama"), tiny_model("llama", attention="cudnn")
    variables, tokens = random_variables(plain), jnp.arange(10)[None]
    ours, theirs = (jax.jit(m.apply)(variables, tokens, cache=m.cache(1, 10)).value for m in (plain, other))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UsageError, match=r"attention = 'cudnn' does not support .*; the platform cpu"):
        jax.eval_shape(other.predict, variables, tokens)


def test_the_page_says_what_the_backends_can() -> None:
    lines = [f"| | {' | '.join(f'`{name}`' for name in BACKENDS)} |", "|---" * (1 + len(BACKENDS)) + "|"]
    for name, says in FEATURES.items():
        able = " | ".join("yes" if name in backend.supports else "" for backend in BACKENDS.values())
        lines.append(f"| {says} | {able} |".replace("|  ", "| "))
    lines += [
        f"| T and S a multiple of | {' | '.join(str(b.length) for b in BACKENDS.values())} |",
        f"| H a multiple of | {' | '.join(str(b.width) for b in BACKENDS.values())} |",
        f"| platforms | {' | '.join(', '.join(b.platforms) for b in BACKENDS.values())} |",
    ]
    page, table = (ROOT / "docs" / "attention.md").read_text(), "\n".join(lines)
    assert table in page, f"docs/attention.md needs this table:\n{table}"
