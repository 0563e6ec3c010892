"""A model of Canon as a model of lm-evaluation-harness, in the same process.

runtime = Runtime(time.time, os.environ, sys.stdout)
opened = load_model.open_language_model(canon.config(None, {"data.tokenizer": "own"}), runtime, "path/to/Llama-3.2-1B")
lm_eval.simple_evaluate(CanonLM(opened), tasks=["arc_easy"])
"""

from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM

from train.evaluate import evaluate, lm_eval
from train.generate import sample, stream
from train.verbs.load_model import LoadedModel


class CanonLM(TemplateLM):
    """A language model from `load_model.open_checkpoint` or `open_pretrained`, with `rows` texts a batch."""

    def __init__(self, opened: LoadedModel, rows: int = 8) -> None:
        super().__init__()
        self.opened, self.rows = opened, rows
        self.tokenizer: Any = opened.setup.tokenizer
        setup = opened.setup
        self._eval_step = evaluate.make_eval_step(setup.model, setup.task, setup.place)

    @property
    def eot_token_id(self) -> int:
        """The token of an empty context."""
        return (*self.tokenizer.prefix, self.tokenizer.eot)[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Text -> ids, with the tokenizer's prefix unless `add_special_tokens` is False."""
        start = () if add_special_tokens is False else self.tokenizer.prefix
        return [*start, *self.tokenizer.encode(string).tolist()]

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        """[((context, continuation), ids of both)] -> log-probability of each continuation, whether it is greedy."""
        setup = self.opened.setup
        rows = [(np.asarray(before, np.int32), np.asarray(after, np.int32)) for _, before, after in requests]
        with setup.activate():
            found = lm_eval.likelihoods(
                setup.model, self._eval_step, self.opened.variables, setup.place, rows, self.rows
            )
        return [(float(nats), bool(greedy)) for nats, greedy in zip(found.nats, found.greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token scored once, in windows that overlap by half their length."""
        context = self.opened.setup.model.config.context
        windows, request_index = [], []
        for i, request in enumerate(requests):
            ids = np.array([self.eot_token_id, *self.tokenizer.encode(request.args[0])], np.int32)
            scored = 1
            while scored < len(ids):
                start = max(0, scored - max(1, context // 2)) if scored > 1 else 0
                stop = min(len(ids), start + context + 1)
                windows.append((None, ids[start:scored], ids[scored:stop]))
                request_index.append(i)
                scored = stop
        if not windows:
            return [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows)
        return np.bincount(request_index, [nats for nats, _ in scores], len(requests)).tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to one of the texts of `until`."""
        texts = []
        for request in requests:
            context, options = request.args
            stops = options.get("until") or []
            sampling = sample.Sampling(
                temperature=options.get("temperature", 0.0) if options.get("do_sample") else 0.0,
                top_k=options.get("top_k") or None,
                top_p=options.get("top_p"),
                stop=self.tokenizer.stop_ids,
            )
            ids = np.array(self.tok_encode(context) or [self.eot_token_id], np.int32)
            generated = sample.generate(
                self.opened.setup.model,
                self.opened.variables,
                [ids],
                jax.random.key(0),
                count=options.get("max_gen_toks", 256),
                sampling=sampling,
            )
            until = [stops] if isinstance(stops, str) else stops
            with self.opened.setup.activate():
                texts.append("".join(part[0] for part in stream.stream_texts(self.tokenizer, [ids], generated, until)))
        return texts
