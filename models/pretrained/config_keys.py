"""Reads and writes keys of a config.json of the Hugging Face hub, every one of which must be accounted for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from documents import Json
from errors import UsageError, quote, unknown

ACTIVATIONS = {  # names in config.json -> ours
    **dict(gelu="gelu", gelu_python="gelu", gelu_new="gelu_tanh", gelu_pytorch_tanh="gelu_tanh", gelu_fast="gelu_tanh"),
    **dict(relu="relu", silu="silu", swish="silu", tanh="tanh", sigmoid="sigmoid", linear="identity"),
}

HARMLESS = frozenset(  # keys of config.json that do not affect a forward pass
    """
    architectures model_type torch_dtype dtype transformers_version tokenizer_class auto_map _name_or_path _commit_hash
    _from_model_config _attn_implementation _attn_implementation_autoset _num_labels initializer_range
    initializer_factor use_cache use_bfloat16 gradient_checkpointing chunk_size_feed_forward torchscript tf_legacy_loss
    output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate xla_device
    keys_to_ignore_at_inference unsloth_version unsloth_fixed is_llama_config

    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id decoder_start_token_id

    problem_type task_specific_params finetuning_task language license prefix id2label label2id num_labels

    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty exponential_decay_length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values bad_words_ids
    suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id

    attn_implementation custom_pipelines pipeline_tag library_name base_model tags model_max_length
    bos_token eos_token pad_token unk_token sep_token cls_token mask_token
    """.split()
)
HARMLESS_PREFIXES = ("_", "transformers", "unsloth_", "onnx", "openvino")  # of further such keys
REQUIRED_VALUES: dict[str, tuple[object, ...]] = {  # legal values of keys of config.json, if present
    **dict(is_encoder_decoder=(False,), is_decoder=(False, True), add_cross_attention=(False,)),
    **dict(cross_attention_hidden_size=(None,), tie_encoder_decoder=(False,), pruned_heads=({}, None)),
    **dict(sparsify_config=(None,)),
}

QUANTISED = ("mxfp4", "fp8")  # methods whose tensors `quantised` reads; activations are not quantised


class Keys:
    """A config.json, every key of which must be read, checked, or known to be harmless.

    `tensors` are the shapes, by name, of the tensors beside it. Keys named in `ignore` count as absent.
    """

    def __init__(
        self, values: Json, tensors: Mapping[str, tuple[int, ...]] | None = None, ignore: Iterable[str] = ()
    ) -> None:
        self.ignore = set(ignore)
        self.tensors = tensors or {}
        self.read_keys = set(HARMLESS)
        self.values = {name: value for name, value in values.items() if name not in self.ignore}
        for name, legal in REQUIRED_VALUES.items():
            self.require_value(name, *legal)
        quantised = self.take("quantization_config", default={}, kind=dict)
        if quantised and quantised.get("quant_method") not in QUANTISED:
            known = " and ".join(QUANTISED)
            raise UsageError(f"config.json has quantization_config = {quantised}; known methods: {known}")

    def set_defaults(self, **absent: object) -> None:
        """Set the values of absent keys."""
        self.values = {**absent, **self.values}

    def nested(self, values: Json) -> "Keys":
        """The Keys of nested settings."""
        return Keys(values, ignore=self.ignore)

    def get(self, name: str, default: object) -> Any:
        """The value of a key, which may be null, or the default if it is absent."""
        self.read_keys.add(name)
        return self.values.get(name, default)

    def take(self, *names: str, default: object = None, kind: type = object) -> Any:
        """The first of the keys that is present and not null, else the default.

        Raises UsageError for a value that is not of type `kind`.
        """
        self.read_keys.update(names)
        name = next((name for name in names if self.values.get(name) is not None), None)
        value = default if name is None else self.values[name]
        if name and not isinstance(value, kind):
            expected = {list: "a list", dict: "a mapping", bool: "true or false"}[kind]
            raise UsageError(f"config.json has {name} = {value!r}; it must be {expected}")
        return value

    def require(self, *names: str) -> Any:
        """The first of the keys that is present. Raises UsageError if none is."""
        value = self.take(*names)
        if value is None:
            raise UsageError(f"config.json has no {' or '.join(names)}")
        return value

    def require_value(self, name: str, *legal: object) -> None:
        """Raise UsageError if a key is present with a value that is not legal."""
        self.read_keys.add(name)
        if name in self.values and self.values[name] not in legal:
            values = " or ".join(map(repr, legal))
            raise UsageError(f"config.json has {name} = {self.values[name]!r}; only {values} is supported")

    def number(self, *names: str, default: float | None = None) -> float:
        """The first of the keys that is present. Raises UsageError if none is, and for a value that is no number."""
        value = self.require(*names) if default is None else self.take(*names, default=default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UsageError(f"config.json has {names[0]} = {value!r}; it must be a number")
        return float(value)

    def count(self, *names: str, default: int | None = None) -> int:
        """The first of the keys that is present. Raises UsageError if none is, and unless it is a positive integer."""
        value = self.require(*names) if default is None else self.take(*names, default=default)
        if type(value) is not int or value < 1:
            raise UsageError(f"config.json has {names[0]} = {value!r}; it must be a positive integer")
        return value

    def classes(self) -> int:
        """The number of classes: of `id2label`, else `num_labels`. Raises UsageError for class numbers with gaps."""
        names = self.take("id2label", kind=dict)
        if names is None:
            return self.count("num_labels", default=2)
        if {int(key) for key in names if key.isdecimal()} != set(range(len(names))):
            raise UsageError(
                f"config.json has id2label of {quote([*names])}; classes must be numbered from 0, without gaps"
            )
        return len(names)

    def architecture(self, legal: Mapping[str, str], inferred: str) -> str:
        """The value in `legal` of the first of `architectures`; without that key, what was inferred from the tensors.

        Raises UsageError for an architecture that is not legal.
        """
        given = (self.take("architectures", kind=list) or [None])[0]
        if given is not None and given not in legal:
            raise unknown("architecture of config.json", given, legal)
        return inferred if given is None else legal[given]

    def activation(self, *names: str, default: str) -> str:
        """Our name of an activation. Raises UsageError for an unknown one."""
        name = str(self.take(*names, default=default))
        if name not in ACTIVATIONS:
            raise unknown("activation of config.json", name, ACTIVATIONS)
        return ACTIVATIONS[name]

    def refuse_unread(self, harmless: Iterable[str] = ()) -> None:
        """Raise UsageError for a key that was not read and is not harmless: it may change what the model computes."""
        known = {*self.read_keys, *harmless}
        unread = [
            k
            for k, v in self.values.items()
            if k not in known and not k.startswith(HARMLESS_PREFIXES) and v is not None
        ]
        if unread:
            listed = ", ".join(f"{k} = {self.values[k]!r}" for k in unread)
            raise UsageError(
                f"config.json has {listed}: unknown, and it may change what is computed; "
                f"to load without it, name it in `ignore` (--ignore_key)"
            )


def placeholder_names(count: int) -> list[str]:
    """The hub's names of unnamed classes."""
    return [f"LABEL_{i}" for i in range(count)]


def label_keys(names: Sequence[str]) -> Json:
    """The keys of config.json for the names of classes."""
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def hf_activation(name: str) -> str:
    """The name of an activation in config.json. Raises UsageError for one that has none."""
    theirs = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), None)
    if theirs is None:
        legal = ", ".join(dict.fromkeys(ACTIVATIONS.values()))
        raise UsageError(f"activation {name!r} has no name in config.json; legal: {legal}")
    return "gelu_new" if name == "gelu_tanh" else theirs
