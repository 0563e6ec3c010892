"""Average precision: cases counted by hand, pycocotools' own sums, errors over images, and what is drawn of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, make_detection_dataset
from train.evaluate import coco_map
from train.evaluate.coco_map import Detections
from train.plots import classification, curves, detection

NAMES = ("cat", "dog", "ant")
CAT, DOG = (10, 10, 50, 50), (60, 20, 90, 80)


def truth(
    *boxes: tuple[tuple[float, ...], int], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()
) -> BoxAnnotations:
    """An image's truths, (corners, class) each."""
    corners = np.array([b for b, _ in boxes], np.float32).reshape(-1, 4)
    marks = (np.isin(np.arange(len(boxes)), some) for some in (crowd, difficult))
    return BoxAnnotations(corners, np.array([k for _, k in boxes], np.int32), *marks)


def found(*boxes: tuple[tuple[float, ...], float, int]) -> Detections:
    """An image's finds, (corners, score, class) each."""
    corners = np.array([b for b, _, _ in boxes], np.float32).reshape(-1, 4)
    return Detections(
        corners, np.array([s for _, s, _ in boxes], np.float32), np.array([k for _, _, k in boxes], np.int32)
    )


PAIR = truth((CAT, 0), (DOG, 1))


def metrics(finds: list[Detections], truths: list[BoxAnnotations]) -> dict[str, float]:
    return coco_map.score(finds, truths, NAMES).metrics


def test_all_found_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """In every mean; a class without truths has no AP and enters none; nothing is printed."""
    got = metrics([found((CAT, 0.3, 0), (DOG, 0.9, 1))], [PAIR])
    assert np.isnan(got.pop("map_50/ant"))
    assert got == pytest.approx(dict.fromkeys(got, 1.0))
    assert set(got) == {"map", "map_50", "map_75", "average_recall", "map_50/cat", "map_50/dog"}
    assert capsys.readouterr().out == ""


def test_one_of_two_found() -> None:
    """Of one class: recall ends at 1/2, so precision is 1 at 51 of the 101 values. Of two classes: 1 and 0."""
    both = truth((CAT, 0), (DOG, 0))
    got = metrics([found((CAT, 0.9, 0))], [both])
    assert (got["map"], got["map_50"], got["average_recall"]) == pytest.approx((51 / 101, 51 / 101, 0.5))
    got = metrics([found((CAT, 0.9, 0))], [PAIR])
    assert (got["map_50"], got["map_50/cat"], got["map_50/dog"], got["average_recall"]) == (0.5, 1, 0, 0.5)


def test_duplicates_are_wrong() -> None:
    """The second find of a cat, surer than that of the other cat: recall 1/2 at precision 1, then 1 at 2/3."""
    both = truth((CAT, 0), (DOG, 0))
    got = metrics([found((CAT, 0.9, 0), (CAT, 0.8, 0), (DOG, 0.7, 0))], [both])
    assert got["map_50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_wrong_class_is_wrong() -> None:
    """A cat where a dog is: the dog is missed, and the cats' precision halves."""
    got = metrics([found((CAT, 0.8, 0), (DOG, 0.9, 0))], [PAIR])
    assert (got["map_50/cat"], got["map_50/dog"]) == pytest.approx((0.5, 0))


def test_overlaps_count_from_their_threshold_on() -> None:
    """A find of half the truth's area has an overlap of 0.5, right at 0.5 and at no other of the ten."""
    got = metrics([found(((10, 10, 50, 30), 0.9, 0))], [truth((CAT, 0))])
    assert (got["map_50"], got["map_75"], got["map"], got["average_recall"]) == pytest.approx((1, 0, 0.1, 0.1))
    assert metrics([found(((10, 10, 50, 29.9), 0.9, 0))], [truth((CAT, 0))])["map_50"] == 0


def test_images_without_truths() -> None:
    """A find there is wrong, and counts only if surer than the right ones; without any truth, every metric is NaN."""
    right, empty = found((CAT, 0.5, 0)), truth()
    assert metrics([right, found()], [truth((CAT, 0)), empty])["map_50"] == 1
    assert metrics([right, found((CAT, 0.6, 0))], [truth((CAT, 0)), empty])["map_50"] == pytest.approx(0.5)
    assert metrics([right, found((CAT, 0.4, 0))], [truth((CAT, 0)), empty])["map_50"] == 1
    assert all(np.isnan(v) for v in metrics([right], [empty]).values())
    nothing = metrics([found()], [truth((CAT, 0))])
    assert (nothing["map"], nothing["average_recall"]) == (0, 0)
    assert coco_map.score([], [], NAMES).metrics == {}


def test_crowds_are_neither_right_nor_wrong() -> None:
    """Finds in a crowd do not count, several of them too, nor does a crowd that is missed."""
    crowd = truth((CAT, 0), ((60, 0, 100, 100), 0), crowd=(1,))
    inside = [((60 + i, 10, 80 + i, 60), 0.9, 0) for i in range(3)]
    assert metrics([found(*inside, (CAT, 0.5, 0))], [crowd])["map_50"] == 1
    assert metrics([found((CAT, 0.5, 0))], [crowd])["map"] == pytest.approx(1)
    assert metrics([found(((0, 60, 30, 90), 0.9, 0), (CAT, 0.5, 0))], [crowd])["map_50"] == pytest.approx(0.5)


def test_difficult_boxes_are_found_by_their_union() -> None:
    """A find inside one is wrong, unlike in a crowd; those that overlap it well do not count, nor does a miss."""
    hard = (((0, 0, 100, 100), 0), ((120, 120, 160, 160), 0))
    right, inside = (hard[1][0], 0.5, 0), ((10, 10, 20, 20), 0.9, 0)
    marked = truth(*hard, difficult=(0,))
    assert metrics([found(inside, right)], [marked])["map_50"] == pytest.approx(0.5)
    assert metrics([found(inside, right)], [truth(*hard, crowd=(0,))])["map_50"] == 1
    well = [((0, 0, 100, 90 - i), 0.9, 0) for i in range(3)]
    assert metrics([found(*well, right)], [marked])["map_50"] == 1
    assert metrics([found(*well, right)], [marked])["map_75"] == 1
    assert metrics([found(((0, 0, 100, 60), 0.9, 0), right)], [marked])["map_75"] == pytest.approx(0.5)
    assert metrics([found(right)], [marked])["map"] == pytest.approx(1)
    [tally] = detection.match_images(coco_map.match([found(right)], [marked], 3), [marked], 0)
    assert tally.mistake_count == 0


def test_what_is_not_finite_is_passed_over() -> None:
    """A model gone astray is scored all the same."""
    astray = found((CAT, float("nan"), 0), ((0, 0, float("inf"), 9), 0.9, 0), (CAT, 0.5, 0))
    judged = coco_map.match([astray], [truth((CAT, 0))], 3)
    assert (judged[0].row.tolist(), judged[0].matched_box.tolist()) == ([2], [0])
    assert coco_map.detection_scores(judged, NAMES).metrics["map_50"] == 1


def made(count: int, seed: int = 0) -> tuple[list[Detections], list[BoxAnnotations]]:
    """Images with truths, most of them found, and false finds; scores in few steps, so that many are alike."""
    draw = np.random.default_rng(seed)
    finds, truths = [], []
    for _ in range(count):
        low = draw.random((draw.integers(0, 6), 2)) * 70
        boxes = np.concatenate([low, low + 5 + draw.random(low.shape) * 25], 1)
        kinds = draw.integers(0, 3, len(boxes))
        truths.append(
            BoxAnnotations(boxes.astype(np.float32), kinds, draw.random(len(boxes)) < 0.1, np.zeros(len(boxes), bool))
        )
        hit = draw.random(len(boxes)) < 0.8
        moved = boxes[hit] + draw.normal(0, 1.5, (hit.sum(), 4))
        stray = draw.random((draw.integers(0, 4), 2)) * 60
        corners = np.concatenate([moved, np.concatenate([stray, stray + 20], 1)])
        score = np.round(draw.random(len(corners)), 1)
        guess = np.concatenate([kinds[hit], draw.integers(0, 3, len(stray))])
        finds.append(Detections(corners.astype(np.float32), score.astype(np.float32), guess))
    return finds, truths


def by_pycocotools(finds: list[Detections], truths: list[BoxAnnotations]) -> np.ndarray:
    """AP, AP at 0.5, at 0.75, and average recall, of pycocotools' own summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def table(rows: list[tuple[int, np.ndarray, int, dict[str, float]]]) -> COCO:
        made = COCO()
        made.dataset = dict(images=[dict(id=i) for i in range(len(truths))], categories=[dict(id=k) for k in range(3)])
        made.dataset["annotations"] = [
            dict(
                id=n, image_id=i, category_id=int(k), bbox=[*b[:2], *(b[2:] - b[:2])], area=np.prod(b[2:] - b[:2]), **m
            )
            for n, (i, b, k, m) in enumerate(rows, 1)
        ]
        made.createIndex()
        return made

    annotations = [(i, b, k, {"iscrowd": int(c)}) for i, t in enumerate(truths) for b, k, c in zip(*t[:3], strict=True)]
    seen = [(i, b, k, {"score": s, "iscrowd": 0}) for i, f in enumerate(finds) for b, s, k in zip(*f, strict=True)]
    judge = COCOeval(table(annotations), table(seen), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[[0, 1, 2, 8]]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocotools(seed: int) -> None:
    """Its own accumulation and summary give the same to rounding."""
    got = metrics(*made(40, seed))
    want = by_pycocotools(*made(40, seed))
    np.testing.assert_allclose([got[k] for k in ("map", "map_50", "map_75", "average_recall")], want, atol=1e-12)


def test_counting_an_image_twice_is_having_it_twice() -> None:
    """Precision and recall of images with multiplicities are those of the images written out, alike scores too."""
    finds, truths = made(12)
    times = np.array([0, 1, 2, 3] * 3)
    copies = np.repeat(np.arange(12), times)
    whole = coco_map.match([finds[i] for i in copies], [truths[i] for i in copies], 3)
    for one, want in zip(coco_map.match(finds, truths, 3), whole, strict=True):
        for got, other in zip(
            coco_map.precision_at_recalls(one, times.astype(float)), coco_map.precision_at_recalls(want), strict=True
        ):
            assert abs(got - other).mean() < 0.02  # what lies between alike scores is in another order
    apart = [f._replace(scores=f.scores + i * 1e-3 + np.arange(len(f.scores)) * 1e-5) for i, f in enumerate(finds)]
    whole = coco_map.match([apart[i] for i in copies], [truths[i] for i in copies], 3)
    for one, want in zip(coco_map.match(apart, truths, 3), whole, strict=True):
        for got, other in zip(
            coco_map.precision_at_recalls(one, times.astype(float)), coco_map.precision_at_recalls(want), strict=True
        ):
            np.testing.assert_allclose(got, other)


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_sets() -> None:
    """Over 40 sets of 50 images, the spread of mAP at 0.5 and the mean error agree within 30 % (2.7 sigma)."""
    scores = [coco_map.score(*made(50, 100 + i), NAMES) for i in range(40)]
    for name in ("map_50", "average_recall"):
        spread = np.std([s.metrics[name] for s in scores], ddof=1)
        assert np.mean([s.stderr[name] for s in scores]) == pytest.approx(spread, rel=0.3)


def test_standard_errors_are_drawn_alike() -> None:
    """Twice the same; of one image none."""
    first, again = (coco_map.score(*made(10), NAMES) for _ in range(2))
    assert first == again
    assert 0 < first.stderr["map"] < 0.3
    assert (first.examples, first.clusters) == (10, 10)
    assert np.isnan(coco_map.score(*made(1, 3), NAMES).stderr["map"])


def test_the_surest_score_has_the_best_f1() -> None:
    """Right, right, wrong, right, wrong, of four truths: F1 is 2/5, 4/6, 4/7, 6/8, 6/9."""
    places = [(x, 0, x + 8, 8) for x in (0, 10, 20, 30)]
    wrong = [(x, 50, x + 8, 58) for x in (0, 10)]
    truths = [truth(*[(p, i % 2) for i, p in enumerate(places)])]
    finds = [
        found((places[0], 0.9, 0), (places[1], 0.8, 1), (wrong[0], 0.7, 0), (places[2], 0.6, 0), (wrong[1], 0.5, 1))
    ]
    judged = coco_map.match(finds, truths, 3)
    assert coco_map.best_f1_threshold(judged) == pytest.approx(0.6)
    [tally] = detection.match_images(judged, truths, 0.6)
    assert (sorted(tally.right), list(tally.wrong), list(tally.missed), tally.mistake_count) == ([0, 1, 3], [2], [3], 2)
    assert coco_map.best_f1_threshold(coco_map.match([found()], truths, 3)) == float("inf")


def test_the_images_of_most_mistakes_are_shown() -> None:
    """In falling order, then some of the middle; of few images all."""
    mistakes = np.arange(100)[::-1]
    np.testing.assert_array_equal(detection.pick_images(mistakes), [*range(8), 52, 53, 54, 55])
    assert sorted(detection.pick_images(np.zeros(9))) == list(range(9))


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes()[:4] == b"\x89PNG"
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(image: np.ndarray, colour: str) -> int:
    """How many pixels have about a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((abs(image - wanted).max(-1) < 40).sum())


def source(truths: list[BoxAnnotations]) -> DetectionDataset:
    """Grey images with those truths, of two shapes."""
    shapes = [(100, 140) if i % 2 else (120, 100) for i in range(len(truths))]
    marked = [AnnotatedImage(str(i), s, t) for i, (s, t) in enumerate(zip(shapes, truths, strict=True))]
    return make_detection_dataset(
        "made", "test", marked, ["a $5 name", *NAMES[1:]], lambda i: np.full((*shapes[i], 3), 200, np.uint8), {}
    )


def test_boxes_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All right is blue and nothing orange; misses and wrong finds are orange, also where nothing is found."""
    truths = [PAIR] * 3
    right = [found((CAT, 0.9, 0), (DOG, 0.8, 1))] * 3
    wrong = [found((CAT, 0.9, 0), ((100, 5, 120, 60), 0.95, 2))] * 3
    seen, captions = {}, list[str]()
    monkeypatch.setattr(detection, "add_title", lambda *given: captions.append(given[-1]) or curves.add_title(*given))
    for name, finds in (("right", right), ("wrong", wrong), ("none", [found()] * 3)):
        judged = coco_map.match(finds, truths, 3)
        image = pixels(
            detection.draw_boxes(source(truths), finds, judged, "a model of $5 on $x", tmp_path / f"{name}.png")
        )
        assert min(image.shape[:2]) > 400
        seen[name] = (near(image, detection.RIGHT), near(image, detection.HELD))
    assert seen["right"][0] > 500 > 0 == seen["right"][1]
    assert min(seen["wrong"]) > 500
    assert seen["none"][0] == 0 < 500 < seen["none"][1]
    assert "Scores from 0.80 on" in captions[0]
    assert "No detection is correct, and none is shown" in captions[2]


def test_names_are_drawn_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No formula, none hidden by its first letter, and no warning, an error here, for a script without font."""
    names = ["a$b$$", "_nothing_", "猫 ตัว"]
    kept: list[Any] = []
    monkeypatch.setattr(
        classification, "save_figure", lambda figure, path: kept.append(figure) or curves.save_figure(figure, path)
    )
    finds = [found((CAT, 0.9, 0), (DOG, 0.8, 1), ((100, 5, 120, 60), 0.95, 2))] * 3
    truths = [truth((CAT, 0), (DOG, 1), ((0, 0, 9, 9), 2))] * 3
    judged = coco_map.match(finds, truths, 3)
    detection.draw_curves(judged, names, "a model on 猫", tmp_path / "p.png")
    detection.draw_boxes(
        replace(source(truths), names=tuple(names)), finds, judged, "a model on 猫", tmp_path / "b.png"
    )
    shown = [text.get_text() for text in kept[0].axes[0].get_legend().get_texts()]
    assert [text.split(":")[0] for text in shown] == [*names, "mean of 3 classes"]
    classification.draw_confusion(np.arange(3), np.arange(3), names, "a model", tmp_path / "c.png")
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 1, "time": 0, "split": "_t$e$$st", "metrics": {"loss": 1.0}}\n'
    )
    assert curves.draw_loss(str(tmp_path), "a model on $x$$", "nats")


@pytest.mark.parametrize("classes", [1, 3, 12])
def test_precision_is_drawn(tmp_path: Path, classes: int) -> None:
    """Of one class, of a few in colours, of many; of no truths too."""
    finds, truths = made(30)
    names = [f"${i}$" for i in range(classes)]
    finds = [f._replace(labels=f.labels % classes) for f in finds]
    truths = [t._replace(labels=t.labels % classes) for t in truths]
    judged = coco_map.match(finds, truths, classes)
    image = pixels(detection.draw_curves(judged, names, "a model of $5 on $x", tmp_path / "p.png"))
    assert min(image.shape[:2]) > 600
    empty = coco_map.match([found()], [truth()], classes)
    blank = pixels(detection.draw_curves(empty, names, "a model of $5 on $x", tmp_path / "e.png"))
    assert (blank < 200).all(-1).sum() < (image < 200).all(-1).sum()
