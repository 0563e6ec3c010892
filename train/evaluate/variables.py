"""The scores of a run's variables: its parameters, and their running mean if it has one."""

from collections.abc import Callable

from data import eval_set
from data.images.detection import DetectionDataset
from data.progress import Tick, silent
from models.core.types import Variables
from train.evaluate import coco_map, evaluate, multilabel
from train.setup import inputs
from train.setup.setup import Setup


def evaluate_variables(
    setup: Setup,
    eval_step: evaluate.EvalStep,
    eval_variables: dict[str, Variables],
    eval_set: eval_set.EvalSet,
    limit: int | None,
    should_stop: Callable[[], bool] = lambda: False,
    tick: Tick = silent,
) -> evaluate.Scores:
    """Evaluate variables by metric prefix: the parameters, and their running mean if there is one.

    Raises evaluate.Interrupted if `should_stop` returns True.
    """
    rows = setup.config.eval.batch or setup.config.train.batch
    found = {}
    for prefix, variables in eval_variables.items():
        scores = evaluate.evaluate(eval_step, variables, eval_set, setup.place, rows, limit, should_stop, tick)
        if isinstance(eval_set.fields, DetectionDataset):
            scores = coco_map.with_precision(scores, eval_set.fields, inputs.detection_size(setup.config))
        if setup.task.is_multilabel:
            names = setup.class_names or tuple(map(str, range(setup.model.config.classes)))
            scores = multilabel.with_precision(scores, names, eval_set.clusters)
        found[prefix] = evaluate.with_perplexity(scores) if setup.task.per_token else scores
    return evaluate.merge(found)
