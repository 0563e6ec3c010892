"""Translations of a held-out split: written by beam search, scored by BLEU and chrF.

Legend: n pairs, S T tokens of a text and of its translation.
"""

import json
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.text import translation_rows
from data.text.translation_rows import bos_id
from data.types import ParallelText
from models.core.spec import round_up
from train.generate import beam_search
from train.record.ticker import Ticker
from train.setup.setup import Setup
from train.sharding import mesh

RESAMPLES = 1000  # of the test set, for confidence intervals
TO_NORMAL = 1.96  # half a 95 % interval in standard errors
BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char"}  # languages that BLEU's usual tokenizer leaves whole


class Metric(NamedTuple):
    """A corpus metric: value and standard error on a scale of 0 to 100, and sacrebleu's signature."""

    name: str
    value: float
    stderr: float
    signature: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.name} {self.value:.2f} ± {self.stderr:.2f} ({self.signature})"


def bleu_and_chrf(hypotheses: Sequence[str], references: Sequence[str], language: str = "") -> tuple[Metric, ...]:
    """BLEU and chrF of a corpus by sacrebleu, with standard errors from its bootstrap over sentences.

    The standard error is the half-width of the 95 % interval over 1.96; nan for one sentence. `language` is the
    references' language code, such as de; it selects the tokenizer of BLEU.

    Source: Papineni et al. 2002, ACL; Popovic 2015, WMT; Post 2018, arXiv:1804.08771.
    """
    from sacrebleu.metrics import BLEU, CHRF

    class Chrf(CHRF):  # sacrebleu mixes float and numpy floats, which its bootstrap cannot sum
        def _compute_f_score(self, statistics: Any) -> float:
            return float(super()._compute_f_score(statistics))

    found = []
    tokenizer = BLEU_TOKENIZERS.get(language.lower().replace("_", "-").split("-")[0], "13a")
    for name, metric in (("BLEU", BLEU(tokenize=tokenizer)), ("chrF", Chrf())):
        score = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=RESAMPLES)
        report = json.loads(score.format(width=4, signature=str(metric.get_signature()), is_json=True))
        error = report.get("confidence_var", 0.0) / TO_NORMAL if len(hypotheses) > 1 else math.nan
        found.append(Metric(name, float(score.score), error, report["signature"]))
    return tuple(found)


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF of each sentence [n]."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return np.array([metric.sentence_score(h, [r]).score for h, r in zip(hypotheses, references, strict=True)])


class Translations:
    """Translations of parallel texts, as many as eval.limit allows, computed on one device of one process."""

    def __init__(self, setup: Setup, variables: Any, pairs: ParallelText) -> None:
        assert setup.tokenizer is not None
        config, limit = setup.config, setup.config.eval.limit
        size = round_up(config.eval.batch or config.train.batch, setup.place.batch_shards)  # as the loss evaluation's
        pairs = pairs if limit is None else pairs.limited(limit * size)
        self.setup, self.tokenizer, self.pairs, self.size = setup, setup.tokenizer, pairs, size
        self.place = mesh.make_placement(mesh.make_mesh("dp:1", jax.local_devices()[:1]), setup.model.specs)
        self.variables = jax.device_put(variables, self.place.shardings({"stats": {}, **setup.model.specs}))
        with setup.activate(), jax.set_mesh(self.place.mesh):
            self.tokens = self._translate()
        self.texts = [self.tokenizer.decode(ids) for ids in self.tokens]

    @cached_property
    def scores(self) -> tuple[Metric, ...]:
        """BLEU and chrF, computed once."""
        return bleu_and_chrf(self.texts, self.pairs.translations, self.pairs.languages[1])

    def _translate(self) -> list[np.ndarray]:
        """The tokens of each translation, at most model.context, without the end token."""
        model, config, pairs = self.setup.model, self.setup.config, self.pairs
        context, stop = model.config.context, self.tokenizer.eot
        fields = translation_rows.make(pairs.texts, pairs.translations, self.tokenizer, context, truncate=True)
        how: dict[str, Any] = dict(
            start=bos_id(self.tokenizer), stop=stop, beams=config.eval.num_beams, penalty=config.eval.length_penalty
        )
        size, found, ticker = self.size, list[np.ndarray](), Ticker(self.setup.runtime)
        search = ticker.report_compile(partial(beam_search.beam_search, model, self.variables, count=context, **how))
        ticker("translating", 0, len(pairs))
        for first in range(0, len(pairs), size):
            index = np.minimum(np.arange(first, first + size), len(pairs) - 1)  # the last batch is padded
            given = jnp.asarray(fields["source"][index]), jnp.asarray(fields["source_mask"][index])
            tokens, _ = search(*given)
            found += [ids[ids != stop] for ids in np.asarray(tokens)]
            ticker("translating", min(first + size, len(pairs)), len(pairs))
        return found[: len(pairs)]
