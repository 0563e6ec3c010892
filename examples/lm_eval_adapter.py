"""Our weights as a model of lm-evaluation-harness, in the same process.

runtime = Runtime(time.time, os.environ, sys.stdout)
opened = load_model.open_language_model(base.defaults(), runtime, "path/to/Llama-3.2-1B")
lm_eval.simple_evaluate(Harness(opened), tasks=["arc_easy"])
"""

from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM

from train.evaluate import evaluate, lm_eval
from train.generate import sample, stream
from train.verbs.load_model import LoadedModel


class Harness(TemplateLM):
    """A language model that `load_model.open_checkpoint` or `open_pretrained` has opened, `rows` texts at a time."""

    def __init__(self, opened: LoadedModel, rows: int = 8) -> None:
        super().__init__()
        self.opened, self.rows = opened, rows
        self.coder: Any = opened.setup.tokenizer
        setup = opened.setup
        self._examine = evaluate.make_eval_step(setup.model, setup.task, setup.place)

    @property
    def eot_token_id(self) -> int:
        """What stands before an empty context."""
        return (*self.coder.prefix, self.coder.eot)[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **how: Any) -> list[int]:
        """Text -> ids, what the tokenizer puts before a text among them unless it is not to be."""
        start = () if add_special_tokens is False else self.coder.prefix
        return [*start, *self.coder.encode(string).tolist()]

    def _loglikelihood_tokens(self, requests: list[Any], **how: Any) -> list[tuple[float, bool]]:
        """[((context, continuation), their ids …)] -> log-probability of each continuation, whether it is greedy."""
        setup = self.opened.setup
        rows = [(np.asarray(before, np.int32), np.asarray(after, np.int32)) for _, before, after in requests]
        with jax.set_mesh(setup.place.mesh):
            found = lm_eval.likelihoods(setup.model, self._examine, self.opened.variables, setup.place, rows, self.rows)
        return [(float(nats), bool(greedy)) for nats, greedy in zip(found.nats, found.greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token told once, in windows that go on from half a window before."""
        context = self.opened.setup.model.config.context
        windows, owner = [], []
        for i, request in enumerate(requests):
            ids = np.array([self.eot_token_id, *self.coder.encode(request.args[0])], np.int32)
            told = 1
            while told < len(ids):
                start = max(0, told - max(1, context // 2)) if told > 1 else 0
                stop = min(len(ids), start + context + 1)
                windows.append((None, ids[start:told], ids[told:stop]))
                owner.append(i)
                told = stop
        found = self._loglikelihood_tokens(windows) if windows else []
        sums = np.bincount(owner, [nats for nats, _ in found], len(requests)) if owner else np.zeros(len(requests))
        return sums.tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to one of the texts of `until`."""
        found = []
        for request in requests:
            context, how = request.args
            stops = how.get("until") or []
            drawn = sample.Sampling(
                temperature=how.get("temperature", 0.0) if how.get("do_sample") else 0.0,
                top_k=how.get("top_k") or None,
                top_p=how.get("top_p"),
                stop=self.coder.stop_ids,
            )
            ids = np.array(self.tok_encode(context) or [self.eot_token_id], np.int32)
            made = sample.generate(
                self.opened.setup.model,
                self.opened.variables,
                [ids],
                jax.random.key(0),
                count=how.get("max_gen_toks", 256),
                sampling=drawn,
            )
            until = [stops] if isinstance(stops, str) else stops
            with jax.set_mesh(self.opened.setup.place.mesh):
                found.append("".join(part[0] for part in stream.stream_texts(self.coder, [ids], made, until)))
        return found
