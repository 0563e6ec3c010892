"""Folders of the hub: what is read however it is spelt and cut into files, and what is refused."""

import io
import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from models.pretrained.formats import safetensors
from tests.support.cases import random_variables, tiny_model
from train.sharding import mesh

NAMES = ("gpt", "llama", "bert")


@pytest.fixture(params=NAMES, scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network in a folder of the hub."""
    model, where = small(request.param), tmp_path_factory.mktemp("hub")
    models.save_pretrained(model, random_variables(model), where)
    return where


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "hub")


def small(name: str) -> models.Model:
    """A network that the hub has a place for, its vocabulary no multiple of anything."""
    return tiny_model(name, vocab=101, **(dict(tied=True, window=None, sliding_layers=None) if name == "llama" else {}))


def values(variables: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()}


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert set(one) == set(two)
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def prefix(folder: Path) -> str:
    return "transformer." if "transformer.wte.weight" in load_file(folder / "model.safetensors") else "model."


def test_save_and_load_are_inverse(folder: Path) -> None:
    """And padding of the vocabulary is 0, not in the files."""
    model, variables = models.load_pretrained(folder)
    whole = random_variables(small(model.family))
    loaded = values(variables)
    want = values(whole)
    for path in {"embed/token", "head/vocab/bias"} & set(want):
        want[path][101:] = 0
    assert_same(loaded, want)
    assert model.count() == sum(v.size for v in load_file(folder / "model.safetensors").values())


def test_names_may_lack_the_prefix_or_have_another(folder: Path) -> None:
    want, base = values(models.load_pretrained(folder)[1]), prefix(folder)
    rewrite(folder, lambda t: {k.removeprefix(base): v for k, v in t.items()})
    assert_same(values(models.load_pretrained(folder)[1]), want)
    rewrite(folder, lambda t: {f"module.{base}{k}": v for k, v in t.items()})
    assert_same(values(models.load_pretrained(folder)[1]), want)


@pytest.mark.parametrize("saved", ["gpt", "llama"], indirect=True)
def test_buffers_are_passed_over_and_copies_of_tied_tables_checked(folder: Path) -> None:
    want, base = values(models.load_pretrained(folder)[1]), prefix(folder)
    table = f"{base}{'wte' if base == 'transformer.' else 'embed_tokens'}.weight"
    buffer = f"{base}{'h.0.attn.bias' if base == 'transformer.' else 'layers.0.self_attn.rotary_emb.inv_freq'}"
    rewrite(folder, lambda t: {**t, buffer: np.ones((1, 1, 4, 4), np.uint8), "lm_head.weight": t[table].copy()})
    assert_same(values(models.load_pretrained(folder)[1]), want)
    rewrite(folder, lambda t: {**t, "lm_head.weight": t[table] + 1})
    with pytest.raises(UsageError, match=r"'lm_head.weight' is not part of this network.*--config.model.tied=False"):
        models.load_pretrained(folder)
    own = values(models.load_pretrained(folder, tied=False)[1])["head"]
    np.testing.assert_array_equal(own[:101], want["embed/token"][:101] + 1)


@pytest.mark.parametrize("limit", [1, 5000, 10**9])
def test_tensors_may_lie_in_several_files(folder: Path, limit: int, tmp_path: Path) -> None:
    model, variables = models.load_pretrained(folder)
    given = load_file(folder / "model.safetensors")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text((folder / "config.json").read_text())
    safetensors.write(tmp_path / "cut", {k: v.nbytes for k, v in given.items()}, given.__getitem__, limit)
    files = list((tmp_path / "cut").glob("*.safetensors"))
    assert (len(files) == 1) == (limit == 10**9)
    assert len(files) <= len(given)
    again = models.load_pretrained(tmp_path / "cut")
    assert again[0].config == model.config
    assert_same(values(again[1]), values(variables))


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_dtypes_of_files(folder: Path, kind: Any) -> None:
    """Halves widen without loss; asked for bfloat16, parameters are so."""
    rewrite(folder, lambda t: {k: v.astype(kind) for k, v in t.items()})
    cast = {k: v.astype(kind).astype(np.float32) for k, v in load_file(folder / "model.safetensors").items()}
    model, variables = models.load_pretrained(folder)
    assert {str(v.dtype) for v in flatten(variables).values()} == {"float32"}
    rows = {row.path: row for row in pretrained.LAYOUTS[model.family].rows(model.config)}
    for path, leaf in values(variables).items():
        row = rows[path]
        for at, name in zip(np.ndindex(leaf.shape[: row.stacked_dims]), row.names(leaf.shape), strict=True):
            np.testing.assert_array_equal(row.to_tensor(leaf[at]), cast[name])
    half = models.load_pretrained(folder, dtype="bfloat16")[1]
    assert {str(v.dtype) for v in flatten(half).values()} == {"bfloat16"}


@pytest.mark.parametrize("text", ["fsdp:8", "dp:2,fsdp:2,tp:2", "tp:4,dp:2"])
def test_parameters_are_read_onto_a_mesh(folder: Path, text: str) -> None:
    want = values(models.load_pretrained(folder)[1])

    def shardings(model: models.Model) -> Any:
        return mesh.make_placement(mesh.make_mesh(text), model.specs).shardings(model.specs)

    model, variables = models.load_pretrained(folder, shardings=shardings)
    assert_same(values(variables), want)
    given = flatten(shardings(model)["params"])
    assert all(leaf.sharding == given[path] for path, leaf in flatten(variables["params"]).items())
    assert any(not leaf.sharding.is_fully_replicated for leaf in flatten(variables).values())


def first(tensors: dict[str, np.ndarray]) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != first(t)}, "is missing"),
        (lambda t: {**t, "adapter.weight": np.ones(2)}, "'adapter.weight' is not part of this network"),
        (lambda t: {**t, first(t): t[first(t)][:-1]}, "not ("),
        (lambda t: {**t, first(t): t[first(t)].astype(np.int32)}, "is of I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, change: Any, says: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UsageError) as refused:
        models.load_pretrained(folder)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def index(folder: Path, where: Any) -> None:
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": where}))


def test_an_index_cannot_lead_out_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    for name in ("../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "weights.bin"):
        index(folder, {"a": name})
        with pytest.raises(UsageError, match=r"no \.safetensors file of that folder"):
            models.load_pretrained(folder)
    index(folder, {"a": "gone.safetensors"})
    with pytest.raises(UsageError, match="which does not exist"):
        models.load_pretrained(folder)
    index(folder, {"a": "one.safetensors"})
    with pytest.raises(UsageError, match="does not have it"):
        models.load_pretrained(folder)
    for wrong in ([1], {"a": 1}, None):
        index(folder, wrong)
        with pytest.raises(UsageError, match="no index of tensors"):
            models.load_pretrained(folder)


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_hidden_files_are_passed_over(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "._weights.safetensors").write_bytes(b"\0\5\x16\7")
    models.load_pretrained(folder)


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_the_single_file_goes_before_an_index(folder: Path) -> None:
    """As in transformers: an older index and its shards beside it, or shards that are gone, change nothing."""
    want, given = values(models.load_pretrained(folder)[1]), load_file(folder / "model.safetensors")
    older = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(given)}
    for where in (older, {"a": "gone.safetensors"}, {"a": "model.safetensors"}, [1]):
        index(folder, where)
        assert_same(values(models.load_pretrained(folder)[1]), want)
    for file in set(older.values()):
        save_file({name: value + 1 for name, value in given.items() if older[name] == file}, folder / file)
    index(folder, older)
    assert_same(values(models.load_pretrained(folder)[1]), want)
    (folder / "model.safetensors").unlink()
    save_file({"stale": np.ones(3, np.float32)}, folder / "model-00001-of-00003.safetensors")  # in no index
    assert not np.array_equal(values(models.load_pretrained(folder)[1])["embed/token"], want["embed/token"])


def test_pickles_and_broken_files_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for broken in (b"", whole[:100], (2**62).to_bytes(8, "little") + whole[8:], whole[:-8]):
        file.write_bytes(broken)
        with pytest.raises(UsageError, match="cannot be read as safetensors"):
            models.load_pretrained(folder)
    file.unlink()
    with pytest.raises(UsageError, match=r"has no \.safetensors file$"):
        models.load_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is pickled, may run code.*safe_serialization"):
        models.load_pretrained(folder)


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    """The library takes the last."""
    entry = '"a":{"dtype":"%s","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry % 'F32'},{entry % 'I32'}}}".encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UsageError, match=r"header of .*model\.safetensors .* the key 'a. appears twice"):
        safetensors.TensorReader(file)


def test_an_npz_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    array, member = np.arange(6, dtype=np.float32), io.BytesIO()
    np.save(member, array)
    for end, says in ((-4, r"array 'x.npy' has 20 bytes; \(6,\) of float32 needs 24"), (20, "read as npz")):
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("x.npy", member.getvalue()[:end])
        with pytest.raises(UsageError, match=says):
            safetensors.TensorReader(file)
    np.savez(file, x=array)
    spoilt = bytearray(file.read_bytes())
    spoilt[spoilt.index(array.tobytes())] ^= 1
    file.write_bytes(spoilt)
    with pytest.raises(UsageError, match=r"a\.npz cannot be read.*Bad CRC"):
        safetensors.TensorReader(file).read("x")


def test_a_folder_with_a_model_is_not_written_over(folder: Path) -> None:
    model, variables = models.load_pretrained(folder)
    (folder / safetensors.INDEX).write_text("{}")
    for name in ("config.json", "model.safetensors", safetensors.INDEX):
        with pytest.raises(UsageError, match=f"has {name} already"):
            models.save_pretrained(model, variables, folder)
        (folder / name).unlink()
    models.save_pretrained(model, variables, folder, eos_token_id=[3, 5])
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [3, 5]


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("mlp", {}, "family mlp"),
        ("rnn", dict(head="none"), "family rnn"),
        ("gpt", dict(drop_path=0.1), "drop_path = 0, not 0.1"),
        ("llama", dict(window=4, sliding_layers=(1,)), "qk_norm"),
        ("llama", dict(qk_norm=True, mlp_bias=True), "mlp_bias = True"),
    ],
)
def test_what_has_no_place_on_the_hub_is_refused(family: str, fields: dict, says: str, tmp_path: Path) -> None:
    model = tiny_model(family, **(dict(window=None, sliding_layers=None) if family == "llama" else {}) | fields)
    with pytest.raises(UsageError) as refused:
        models.save_pretrained(model, random_variables(model), tmp_path / "hub")
    assert says in str(refused.value)
    assert not (tmp_path / "hub").exists()


def test_keys_that_are_passed_over_must_be_named(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"softcap": 30.0, "novelty": None}))
    with pytest.raises(UsageError, match=r"softcap = 30\.0: unknown.*--ignore_key"):
        models.load_pretrained(folder)
    assert models.load_pretrained(folder, ignore=["softcap"])[0].family in NAMES


def test_keys_that_change_no_number_are_passed_over(folder: Path) -> None:
    """Of other programs and of people; a quantisation is none of them."""
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    more = {
        "transformers.js_config": {"kv_cache_dtype": "fp16"},
        "_my_note": 3,
        "onnx_opset": 14,
        "auto_map": {"a": "b"},
    }
    more |= {"attn_implementation": "sdpa", "custom_pipelines": {}, "model_max_length": 8, "task_specific_params": {}}
    file.write_text(json.dumps(whole | more))
    assert models.load_pretrained(folder)[0].family in NAMES
    for key in ("quantization_config", "quantization", "rotary_dims"):
        file.write_text(json.dumps(whole | {key: {"bits": 4}}))
        with pytest.raises(UsageError, match=key):
            models.load_pretrained(folder)


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_numbers_of_classes_have_no_gaps(folder: Path) -> None:
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    for numbers in ("02", "12", "0x"):
        file.write_text(json.dumps(whole | {"id2label": {n: f"name {n}" for n in numbers}}))
        with pytest.raises(UsageError, match=r"id2label of .*numbered from 0, without gaps"):
            models.load_pretrained(folder)


STRANGE = (None, "x", 3, -1, 0, 2.5, 10**9, math.nan, math.inf, True, [], [1], {}, {"a": 1})


def test_a_strange_value_in_a_config_is_legal_or_refused_by_name(folder: Path) -> None:
    """No value ends in one of Python's own errors, or in work without end."""
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    if "rope_parameters" in whole:
        whole["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 8.0}
        whole["rope_parameters"] |= {"original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0}
    inner = whole.get("rope_parameters", {})
    changed = [{**whole, key: value} for key in whole for value in STRANGE]
    changed += [{**whole, "rope_parameters": {**inner, key: value}} for key in inner for value in STRANGE]
    said = []
    for values in changed:
        file.write_text(json.dumps(values))
        try:
            pretrained.read_config(folder)
        except UsageError as error:
            said.append(str(error))
    assert not [text for text in said if "\n" in text]
    assert len(changed) / 4 < len(said) < len(changed)


def test_logits_are_of_the_published_vocabulary(folder: Path) -> None:
    model, variables = models.load_pretrained(folder)
    tokens = jnp.arange(12).reshape(2, 6)
    assert jax.eval_shape(model.predict, variables, tokens).shape == (2, 6, 101)
