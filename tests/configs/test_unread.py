"""Knobs that have no effect in a config: one rule refuses them all."""

from typing import Any

import pytest

from configs import reader, unread
from configs.knobs import KNOBS, RunConfig
from configs.section import Knob
from configs.unread import FACTS, READ_UNDER, SET
from data.sources import multiple_choice
from models import TRAITS
from tests.support.configs import CHANGED, VARIANTS, config
from train.setup.facts import COMPUTE_KNOBS
from train.tasks import TASKS
from train.update import optim, schedules

PARTS = {*COMPUTE_KNOBS.values(), "embeddings", "carried state"}
KINDS = {"text", "pairs", "features", "images", "resized images", "boxes"}
LEGAL = {
    **{"optim.name": set(optim.OPTIMIZERS), "schedule.name": set(schedules.SCHEDULES)},
    **{"data": KINDS, "sets": {"one set", "several sets"}, "task": TRAITS, "parts": PARTS},
    "loss": set(TASKS),
    "data.tokenizer": {"byte", "char", "word", "bpe"},
    "exam": set(multiple_choice.EVAL_KINDS),
    "views": {"one view", "two views"},
    "verb": {"train", "eval", "sample", "convert --pretrained", "convert --export"},
}


def changed(knob: Knob) -> Any:
    """A value that is not the knob's default."""
    return not knob.default if knob.type == "bool" else CHANGED[knob.type.split(" |")[0]]


def test_conditions_name_what_exists() -> None:
    """A condition's names are knobs or facts, and its values are among those that these can have."""
    for key, condition in READ_UNDER.items():
        assert key in KNOBS
        for name, values in condition.items():
            assert name in KNOBS or name in FACTS
            assert values is SET or set(values) < LEGAL[name]


@pytest.mark.parametrize("key", list(READ_UNDER))
def test_a_knob_is_refused_where_it_is_not_read(key: str) -> None:
    """Where a single entry of its condition fails, given now or by the config; not where all of them hold."""
    condition = READ_UNDER[key]
    facts = {name: (condition.get(name, ()), "") for name in FACTS}
    for given in ((), (key,)):
        assert lines(key, condition, facts, given) == []
        for name, values in condition.items():
            other = () if values is SET else tuple(LEGAL[name] - set(values))
            lacks = {**facts, name: (other, "other")} if name in FACTS else facts
            (line,) = lines(key, {**condition, name: other}, lacks, given)
            assert "has no effect: it is read where" in line


def lines(key: str, condition: Any, facts: Any, given: Any) -> list[str]:
    """What is said of a knob that has another value than its default, in a config that meets a condition."""
    values_set: dict[str, Any] = {}
    for name, values in condition.items():
        if name in KNOBS and values is SET:
            values_set[name] = changed(KNOBS[name])
        elif name in KNOBS and values:
            values_set[name] = values[0]
    cfg = RunConfig().replace({**values_set, key: changed(KNOBS[key])})
    return [line for line in unread.unread(cfg, facts, given) if line.startswith(f"config key {key!r} = ")]


def test_what_a_call_takes_away_is_no_fault_of_its_config() -> None:
    """A value of the config passes where the call changes what it was for; a value of the call does not."""
    cfg = reader.override(config("gpt", "quick"), [("schedule.name", "constant"), ("optim.name", "momentum")])
    assert (cfg.schedule.end_fraction, cfg.optim.beta2) == (0.1, 0.99)
    assert unread.unread(cfg, {}, {"schedule.name", "optim.name"}) == []
    assert len(unread.unread(cfg, {})) == 2
    assert len(unread.unread(cfg, {}, {"schedule.name", "schedule.end_fraction", "optim.name"})) == 1
    assert unread.unread(cfg, {}, only_given=True) == []
    assert len(unread.unread(cfg, {}, {"schedule.end_fraction"}, only_given=True)) == 1


def test_every_variant_reads_its_knobs() -> None:
    """No config of ours, with any ablation, sets a knob that others of its knobs leave unread."""
    left = {variant: unread.unread(config(*variant), {}) for variant in VARIANTS}
    wants_a_folder = {v for v in VARIANTS if v[0] == "bert" and "scratch" not in v[1]}  # for a head beside init_from
    assert {v: lines for v, lines in left.items() if len(lines) != (v in wants_a_folder)} == {}
