"""BERT on the Hugging Face hub: `bert.encoder.layer.0.attention.self.query.weight`, and so on.

`architectures`, or without it the tensors, determine the head. Tensors of other heads, such as that of next-sentence
prediction, are ignored, as in transformers.
"""

from collections.abc import Iterable

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.bert import Config
from models.pretrained.config_keys import Keys, hf_activation, label_keys, placeholder_names
from models.pretrained.mapping import Row, affine, same

TYPES = ("bert",)
HEADS = {"BertModel": "none", "BertForMaskedLM": "mlm", "BertForPreTraining": "mlm"}
HEADS["BertForSequenceClassification"] = "classes"
ARCHITECTURE = {"none": "BertModel", "mlm": "BertForMaskedLM", "classes": "BertForSequenceClassification"}
PREFIX = "bert."
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
HARMLESS = (  # of older files
    *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
    *("directionality", "output_past"),
)


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers' BertConfig."""
    keys.require_value("position_embedding_type", "absolute")
    keys.require_value("is_decoder", False)
    modules = {name.split(".")[0] for name in keys.tensors}
    inferred = "mlm" if "cls" in modules else "classes" if "classifier" in modules else "none"
    head = keys.architecture(HEADS, inferred)
    last = keys.take("classifier_dropout")
    dropout = keys.take("hidden_dropout_prob", default=0.1)
    if head == "classes" and last not in (None, dropout):
        raise UsageError(f"config.json has classifier_dropout = {last}; it must be hidden_dropout_prob = {dropout}")
    return {
        "vocab": keys.take("vocab_size", default=30522),
        "context": keys.take("max_position_embeddings", default=512),
        "types": keys.take("type_vocab_size", default=2),
        "width": keys.take("hidden_size", default=768),
        "depth": keys.take("num_hidden_layers", default=12),
        "heads": keys.take("num_attention_heads", default=12),
        "hidden": keys.take("intermediate_size", default=3072),
        "activation": keys.activation("hidden_act", default="gelu"),
        "head": head,
        "pool": "first" if head == "classes" else "none",
        "pooler": head == "classes" or (head == "none" and any("pooler.dense." in name for name in keys.tensors)),
        "classes": keys.classes(),
        "dropout": dropout,
        "dropout_attention": keys.take("attention_probs_dropout_prob", default=0.1),
        "tied": keys.take("tie_word_embeddings", default=True),
        "eps": keys.take("layer_norm_eps", default=1e-12),
    }


def config(c: Config) -> Json:
    """The config.json of a Config. Raises UsageError for a Config that transformers' BERT cannot express."""
    if c.head == "classes" and (c.pool != "first" or not c.pooler):
        raise UsageError(
            f"a published BERT for classes has pool = 'first' and a pooler, not pool = {c.pool!r}, pooler = {c.pooler}"
        )
    if c.head == "mlm" and c.pooler:
        raise UsageError("a published BERT for mlm has pooler = False, not True")
    rate = c.dropout if c.dropout_attention is None else c.dropout_attention
    return {
        "model_type": "bert",
        "architectures": [ARCHITECTURE[c.head]],
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "type_vocab_size": c.types,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.feed_forward,
        "hidden_act": hf_activation(c.activation),
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": rate,
        **label_keys(placeholder_names(c.classes)),
        "tie_word_embeddings": c.tied,
        "layer_norm_eps": c.eps,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    V, D, N, H, F = c.vocab, c.width, c.heads, c.head_width, c.feed_forward
    top, layer = f"{PREFIX}embeddings.", f"{PREFIX}encoder.layer.{{}}."

    def norm(ours: str, theirs: str) -> list[Row]:
        old = {"scale": "gamma", "bias": "beta"}
        new = {"scale": "weight", "bias": "bias"}
        return [same(f"{ours}/{n}", f"{theirs}.{new[n]}", D, older=f"{theirs}.{old[n]}") for n in new]

    found = [
        same("embed/token", f"{top}word_embeddings.weight", V, D),
        same("embed/position", f"{top}position_embeddings.weight", c.context, D),
        same("embed/type", f"{top}token_type_embeddings.weight", c.types, D),
        *norm("embed/norm", f"{top}LayerNorm"),
        *affine("blocks/q", f"{layer}attention.self.query", (D,), (N, H)),
        *affine("blocks/k", f"{layer}attention.self.key", (D,), (N, H)),
        *affine("blocks/v", f"{layer}attention.self.value", (D,), (N, H)),
        *affine("blocks/out", f"{layer}attention.output.dense", (N, H), (D,)),
        *norm("blocks/norm1", f"{layer}attention.output.LayerNorm"),
        *affine("blocks/up", f"{layer}intermediate.dense", (D,), (F,)),
        *affine("blocks/down", f"{layer}output.dense", (F,), (D,)),
        *norm("blocks/norm2", f"{layer}output.LayerNorm"),
    ]
    if c.pooler:
        found += affine("pooler", f"{PREFIX}pooler.dense", (D,), (D,))
    if c.head == "classes":
        found += affine("head", "classifier", (D,), (c.classes,))
    if c.head == "mlm":
        found += affine("head", "cls.predictions.transform.dense", (D,), (D,))
        found += norm("head/norm", "cls.predictions.transform.LayerNorm")
        names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
        name, older = names if c.tied else names[::-1]
        found.append(same("head/vocab/bias", name, V, older=older))
        if not c.tied:
            found.append(same("head/vocab/kernel", "cls.predictions.decoder.weight", V, D))
    return found


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of a buffer, and of heads that this network lacks."""
    pooler = () if c.pooler else (f"{PREFIX}pooler.dense.*",)
    heads = ("cls.*",) if c.head != "mlm" else ("cls.seq_relationship.*", *copies(c))
    return f"{PREFIX}embeddings.position_ids", *pooler, *heads


def copies(c: Config) -> dict[str, str]:
    """Tensors to write under a second name: transformers has a second, unused bias."""
    twice = c.head == "mlm" and not c.tied
    return {"cls.predictions.bias": "cls.predictions.decoder.bias"} if twice else {}
