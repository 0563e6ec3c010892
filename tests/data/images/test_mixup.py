"""Rows mixed in pairs: by draws of their own, the same whichever rows are read."""

import numpy as np
import pytest

from data import sources
from data.fields import generator
from data.images import augment, mixup
from data.images.mixup import Mixup
from data.sampler import BatchSampler, Phase
from data.types import Examples, ExampleSource

BOTH = (("mixup", 0.4), ("cutmix", 1.0))


def flat(count: int = 64, side: int = 12) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images of ones with label 1, and of zeros with label 0."""
    fields = lambda value: {  # noqa: E731
        "image": np.full((count, side, side, 1), value, np.float32),
        "label": np.full(count, value, np.int32),
        "weight": np.ones(count, np.float32),
    }
    return fields(1), fields(0)


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_partners_are_a_permutation_without_fixed_points(size: int) -> None:
    """Another one in each step; a batch of one has nobody else."""
    mix, rows = Mixup(0, BOTH), np.arange(size)
    for step in range(20):
        found = mix.partners(step, size)
        np.testing.assert_array_equal(np.sort(found), rows)
        assert size == 1 or (found != rows).all()
    if size > 3:
        assert len({mix.partners(step, size).tobytes() for step in range(20)}) == 20
        assert (mix.partners(0, size) != Mixup(1, BOTH).partners(0, size)).any()


@pytest.mark.parametrize("ways", [BOTH[:1], BOTH[1:]])
def test_the_share_is_of_the_pixels(ways: tuple[tuple[str, float], ...]) -> None:
    """Of ones among zeros the mean of the pixels is the share of their label."""
    (ones, zeros), rows = flat(), np.arange(64)
    got = Mixup(5, ways)(ones, zeros, 3, rows)
    assert set(got) == {"image", "label", "weight", "label_b", "lam"}
    assert (got["label"] == 1).all()
    assert (got["label_b"] == 0).all()
    assert got["image"].dtype == got["lam"].dtype == np.float32
    assert got["label_b"].dtype == np.int32
    np.testing.assert_allclose(got["image"].mean((1, 2, 3)), got["lam"], atol=1e-6)
    levels = {len(np.unique(image)) for image in got["image"]}
    assert levels == {1} if ways[0][0] == "mixup" else levels <= {1, 2}
    assert (ones["image"] == 1).all()  # what was read stays


def test_a_cut_is_one_box_in_its_place() -> None:
    """The partner's pixels stay where they are, in a box that the image's edge may cut."""
    draw = np.random.default_rng(0)
    mine, theirs = draw.random((200, 9, 14, 2)), draw.random((200, 9, 14, 2))
    batch, others = ({"image": i.astype(np.float32), "label": np.zeros(200, np.int32)} for i in (mine, theirs))
    got = Mixup(0, BOTH[1:])(batch, others, 0, np.arange(200))
    for image, own, other in zip(got["image"], batch["image"], others["image"], strict=True):
        cut = (image == other).all(-1)
        np.testing.assert_array_equal(image, np.where(cut[..., None], other, own))
        if cut.any():
            y, x = np.nonzero(cut)
            assert cut[y.min() : y.max() + 1, x.min() : x.max() + 1].all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_law_of_beta(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), within four standard errors or so."""
    ones, zeros = flat(4000, 1)
    share = Mixup(0, (("mixup", alpha),))(ones, zeros, 0, np.arange(4000))["lam"]
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean() == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
    assert share.var() == pytest.approx(variance, rel=0.1)


def test_of_two_ways_each_row_takes_either() -> None:
    ones, zeros = flat(400)
    got = Mixup(0, (("mixup", 100.0), ("cutmix", 100.0)))(ones, zeros, 0, np.arange(400))
    cut = sum(len(np.unique(image)) == 2 for image in got["image"])
    assert 140 <= cut <= 260


def plan(seed: int = 0, rows: int = 16) -> BatchSampler:
    images = augment.ImagePipeline(seed, augment.parse("flip,crop:2"))
    return BatchSampler(
        (ExampleSource(sources.load("digits", "train")),), (Phase(0, rows),), seed, images, Mixup(seed, BOTH)
    )


def test_a_process_mixes_its_rows_as_all_do() -> None:
    """Whichever rows are read: the partner's example, with the partner's own flip and crop."""
    whole, plain = plan().batch(5), BatchSampler(plan().sources, plan().phases, 0, plan().augment).batch(5)
    for rows in ([3], [15, 0, 7], list(range(8)), list(range(16))):
        part = plan().batch(5, rows)
        assert part.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])
    partners = plan().mixup.partners(5, 16)
    np.testing.assert_array_equal(whole["label"], plain["label"])
    np.testing.assert_array_equal(whole["label_b"], plain["label"][partners])
    by_hand = plan().mixup(plain, {k: v[partners] for k, v in plain.items()}, 5, np.arange(16))
    np.testing.assert_array_equal(whole["image"], by_hand["image"])
    assert (whole["image"] != plain["image"]).any((1, 2, 3)).sum() > 10


def test_mixing_differs_by_seed_step_and_row() -> None:
    shares = [plan(seed).batch(step)["lam"] for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({s.tobytes() for s in shares}) == 3
    assert all(len(set(s)) > 12 for s in shares)
    np.testing.assert_array_equal(plan().batch(0)["lam"], shares[0])


def test_draws_of_operations_and_of_mixing_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share does not follow from the flip of its row."""
    examples = Examples({"image": np.ones((2, 2, 2, 1), np.uint8), "label": np.zeros(2, np.int32)}, 2, {}, 2)
    with_flip = BatchSampler(
        (ExampleSource(examples),), (Phase(0, 8),), 0, augment.ImagePipeline(0, (("flip",),)), Mixup(0, BOTH)
    )
    without = BatchSampler((ExampleSource(examples),), (Phase(0, 8),), 0, augment.ImagePipeline(0), Mixup(0, BOTH))
    np.testing.assert_array_equal(with_flip.batch(0)["lam"], without.batch(0)["lam"])
    first: list[float] = []

    def spied(*of: int) -> np.random.Generator:
        first.append(generator(*of).random())
        return generator(*of)

    for module in (augment, mixup):
        monkeypatch.setattr(module, "generator", spied)
    with_flip.batch(0, [0])
    mine = [generator(0, 0, 0, site).random() for site in (0, mixup.PARTNER_SITE, mixup.LAMBDA_SITE)]
    assert set(mine) <= set(first)
    assert len(set(mine)) == 3
