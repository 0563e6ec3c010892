"""The letterbox and augmentation of images with boxes: a box still bounds its pixels, whatever was done to them."""

import colorsys

import numpy as np
import pytest

from data.images import detection, letterbox
from data.images.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, to_pixel_xyxy, to_relative_cxcywh
from data.images.letterbox import DetectionPipeline, LetterboxTransform
from data.sampler import BatchSampler, Phase
from data.source import Reading
from data.types import ExampleSource
from errors import UsageError

SIZES = [(64, 64), (40, 90), (90, 41), (33, 64)]
ORIGINALS = [(64, 64), (100, 57), (31, 120), (480, 640)]
OPERATIONS = "flip,jitter:0.2,hue:0.1,saturation:1.5,exposure:1.5"


def lit(rows: int, columns: int, *corners: tuple[int, int, int, int]) -> np.ndarray:
    """A black image with white rectangles (left, top, right, bottom)."""
    image = np.zeros((rows, columns, 3), np.uint8)
    for left, top, right, bottom in corners:
        image[top:bottom, left:right] = 255
    return image


def batch_of(*images: tuple[np.ndarray, list[tuple[int, int, int, int]]], most: int = 3) -> dict[str, np.ndarray]:
    """The fields of images with their boxes; the class of box i is i."""
    marked = []
    for i, (image, corners) in enumerate(images):
        count = len(corners)
        truth = BoxAnnotations(np.array(corners, float).reshape(-1, 4), np.arange(count), *np.zeros((2, count), bool))
        marked.append(AnnotatedImage(str(i), (image.shape[0], image.shape[1]), truth))
    source = detection.make_detection_dataset(
        "made", "train", marked, "abcdef", lambda i: images[i][0], {}
    ).with_max_boxes(most)
    return {**source.__getitems__(np.arange(len(images))), "weight": np.ones(len(images), np.float32)}


def bright(image: np.ndarray) -> tuple[int, int, int, int]:
    """Corners of what is white, pixels more than halfway up from black; what is beside the image is halfway."""
    ys, xs = np.nonzero(image.min(-1) > 0.51)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("original", ORIGINALS)
def test_letterbox(size: tuple[int, int], original: tuple[int, int]) -> None:
    """As large as may be, in the middle, sides in proportion to a pixel; around it 0.5; the image's mean is kept."""
    image = np.random.default_rng(0).integers(0, 256, (*original, 3)).astype(np.uint8)
    image = np.kron(image[::8, ::8], np.ones((8, 8, 1), np.uint8))[: original[0], : original[1]]
    left, top, right, bottom = letterbox.letterbox(original, size).target_box
    scale = min(size[0] / original[0], size[1] / original[1])
    assert 0 <= original[0] * scale - (bottom - top) < 1
    assert 0 <= original[1] * scale - (right - left) < 1
    assert 0 <= size[0] - bottom - top <= 1
    assert 0 <= size[1] - right - left <= 1
    got = DetectionPipeline(0, size)(batch_of((image, [])), 0, np.arange(1))["image"][0]
    inside = np.zeros(size, bool)
    inside[top:bottom, left:right] = True
    assert (got[~inside] == 0.5).all()
    np.testing.assert_allclose(got[inside].mean(0), image.mean((0, 1)) / 255, atol=0.03)


def test_letterbox_of_the_size_itself_is_the_image() -> None:
    """Not a pixel changes but for the division by 255."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    got = DetectionPipeline(0, (48, 64))(batch_of((image, [(1, 2, 3, 4)])), 0, np.arange(1))
    np.testing.assert_array_equal(got["image"][0], image.astype(np.float32) / 255)
    np.testing.assert_allclose(to_pixel_xyxy(got["boxes"][0, 0], (48, 64)), (1, 2, 3, 4), atol=1e-5)


def test_what_is_made_smaller_is_averaged() -> None:
    """A chessboard of single pixels becomes grey, neither black nor white."""
    board = np.repeat(255 * (np.indices((64, 64)).sum(0) % 2)[..., None], 3, -1).astype(np.uint8)
    got = DetectionPipeline(0, (16, 16))(batch_of((board, [])), 0, np.arange(1))["image"]
    np.testing.assert_allclose(got, 0.5, atol=0.01)


def test_letterbox_by_hand() -> None:
    """100 columns by 50 rows into 40 by 40: by 0.4, below 10 rows; (20, 10)-(60, 30) is (8, 14)-(24, 22)."""
    assert letterbox.letterbox((50, 100), (40, 40)) == LetterboxTransform((0, 0, 100, 50), (0, 10, 40, 30))
    corners = [(20, 10, 60, 30)]
    got = DetectionPipeline(0, (40, 40))(batch_of((lit(50, 100, *corners), corners)), 0, np.arange(1))
    np.testing.assert_allclose(got["boxes"][0, 0], [0.4, 0.45, 0.4, 0.2], atol=1e-6)
    assert bright(got["image"][0]) == (8, 14, 24, 22)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("original", ORIGINALS)
def test_to_original_undoes_the_letterbox(size: tuple[int, int], original: tuple[int, int]) -> None:
    """To a thousandth of a pixel; what reaches beyond the image is cut."""
    draw = np.random.default_rng(1)
    low = draw.random((20, 2)) * (original[1], original[0]) * 0.7
    corners = np.concatenate([low, low * 1.3], -1)
    there, share = letterbox.transform_boxes(corners, letterbox.letterbox(original, size), size)
    np.testing.assert_allclose(share, 1)
    np.testing.assert_allclose(
        letterbox.to_original(to_relative_cxcywh(there, size), size, original), corners, atol=1e-3
    )
    whole = letterbox.to_original(np.array([[[0.5, 0.5, 1.5, 1.5]]], np.float32), size, original)
    np.testing.assert_allclose(whole, [[[0, 0, original[1], original[0]]]])


NO_BRIGHTNESS = OPERATIONS.replace("exposure:1.5", "exposure:1")


@pytest.mark.parametrize("operations", [None, "flip", "jitter:0.2", "flip,jitter:0.4", NO_BRIGHTNESS])
def test_a_box_bounds_its_pixels(operations: str | None) -> None:
    """Of 160 draws on images of four shapes, white on black; to a pixel."""
    do = DetectionPipeline(3, (96, 128), letterbox.parse(operations))
    seen = 0
    for original in ORIGINALS:
        y, x = original
        corners = (x // 4, y // 3, x - x // 5, y - y // 4)
        batch = batch_of(*[(lit(y, x, corners), [corners])] * 40)
        got = do(batch, 7, np.arange(40))
        for image, box, there in zip(got["image"], got["boxes"][:, 0], got["box_mask"][:, 0], strict=True):
            if there:
                np.testing.assert_allclose(to_pixel_xyxy(box, (96, 128)), bright(image), atol=1)
                seen += 1
    assert seen >= 150


def test_jitter_moves_edges_by_the_share_and_no_more() -> None:
    """What is seen begins and ends within the share of the side from the image's edges, and all of it is reached."""
    views = [
        DetectionPipeline(0, (100, 100), (("jitter", 0.2),))._draw_transform((100, 100), 0, row)[0]
        for row in range(400)
    ]
    parts, places = np.array([v.source_box for v in views]), np.array([v.target_box for v in views])
    assert (parts >= 0).all()
    assert (parts <= 100).all()
    low, high = parts[:, :2], parts[:, 2:]
    assert 15 < low.max() <= 20  # of 800 draws
    assert 80 <= high.min() < 85
    moved_out = places[:, 0][low[:, 0] == 0]  # an edge 20 out of at least 80 to 140
    assert 10 <= moved_out.max() <= 20
    assert ((places[:, 2:] - places[:, :2]) > 0).all()
    assert abs((low[:, 0] == 0).mean() - 0.5) < 0.08  # half of the edges move out
    wide = np.array(
        [
            DetectionPipeline(0, (100, 100), (("jitter", 0.2),))._draw_transform((50, 100), 0, row)[0].target_box
            for row in range(100)
        ]
    )
    assert wide.min(0).tolist()[:2] == [0, 25]  # within the letterbox, on all of it at times
    assert wide.max(0).tolist()[2:] == [100, 75]


def test_boxes_out_of_sight_are_dropped() -> None:
    """Below a quarter of the area a box becomes padding, and those after it move up with their classes."""
    view = LetterboxTransform((10.0, 0.0, 50.0, 40.0), (0, 0, 40, 40))
    corners = np.array([[0, 0, 13, 10], [0, 0, 14, 10], [20, 20, 60, 60]], float)
    there, share = letterbox.transform_boxes(corners, view, (40, 40))
    np.testing.assert_allclose(share, [3 / 13, 4 / 14, 30 * 20 / 1600])
    np.testing.assert_allclose(there, [[0, 0, 3, 10], [0, 0, 4, 10], [10, 20, 40, 40]])
    turned, _ = letterbox.transform_boxes(corners, view._replace(flip=True), (40, 40))
    np.testing.assert_allclose(turned, [[37, 0, 40, 10], [36, 0, 40, 10], [0, 20, 30, 40]])
    do = DetectionPipeline(0, (40, 40), (("jitter", 0.45),))
    boxes = [(0, 0, 4, 4), (10, 10, 30, 30)]
    got = do(batch_of(*[(lit(40, 40, *boxes), boxes)] * 60), 0, np.arange(60))
    dropped = (got["box_mask"].sum(1) == 1) & (got["box_labels"][:, 0] == 1)
    assert dropped.sum() > 5
    assert not got["boxes"][got["box_mask"] == 0].any()
    assert not got["box_labels"][got["box_mask"] == 0].any()


def test_flip_turns_half_of_the_images() -> None:
    """Each is itself or its mirror image; of 400 draws each is at least 140 (6 sigma)."""
    image = lit(8, 8, (1, 2, 3, 6))
    got = DetectionPipeline(0, (8, 8), letterbox.parse("flip"))(
        batch_of(*[(image, [(1, 2, 3, 6)])] * 400), 0, np.arange(400)
    )
    kept = [(g * 255 == image).all() for g in got["image"]]
    turned = [(g * 255 == image[:, ::-1]).all() for g in got["image"]]
    assert all(k != t for k, t in zip(kept, turned, strict=True))
    assert 140 <= sum(kept) <= 260
    np.testing.assert_allclose(got["boxes"][:, 0, 0], np.where(kept, 0.25, 0.75))


@pytest.mark.parametrize("change", [(0.0, 1.0, 1.0), (0.1, 1.4, 0.7), (-0.4, 0.5, 1.3), (0.5, 2.0, 1.0)])
def test_colours_are_those_of_hsv(change: tuple[float, float, float]) -> None:
    """Pixel by pixel with Python's colorsys: hue turned, chroma and value multiplied, then cut to [0, 1]."""
    hue, saturation, exposure = change
    image = np.random.default_rng(0).random((12, 12, 3)).astype(np.float32)
    image[0], image[1, :, 0] = 0.3, image[1, :, 1]  # grey, and two channels alike
    want = np.empty_like(image)
    for at in np.ndindex(12, 12):
        h, s, v = colorsys.rgb_to_hsv(*image[at].tolist())
        pure = np.array(colorsys.hsv_to_rgb((h + hue) % 1, 1, 1))
        want[at] = np.clip(exposure * (v - saturation * v * s * (1 - pure)), 0, 1)
    got = letterbox.jitter_hsv(image, hue, saturation, exposure)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_colour_leaves_boxes_and_surroundings() -> None:
    """Brightness changes what is seen of the image, not what is beside it, nor the boxes."""
    batch = batch_of((np.full((20, 40, 3), 100, np.uint8), [(3, 3, 9, 9)]))
    plain, bright = (
        DetectionPipeline(0, (40, 40), letterbox.parse(t))(batch, 0, np.arange(1)) for t in (None, "exposure:2")
    )
    assert (plain["boxes"] == bright["boxes"]).all()
    assert (bright["image"][0, :10] == 0.5).all()
    factor = bright["image"][0, 10:30] / plain["image"][0, 10:30]
    assert np.ptp(factor) < 1e-5
    assert 0.5 <= factor[0, 0, 0] <= 2 != 1


def test_colour_draws() -> None:
    """Hue either way by up to its share; brightness up to twice as much or as little, each half of the time."""
    do = DetectionPipeline(0, (8, 8), letterbox.parse("hue:0.1,exposure:2"))
    drawn = [do._draw_transform((8, 8), 0, row)[1] for row in range(400)]
    hue, exposure = (np.array([d[name] for d in drawn]) for name in ("hue", "exposure"))
    assert -0.1 <= hue.min() < -0.09 < 0.09 < hue.max() <= 0.1
    assert 0.5 <= exposure.min() < 0.52 < 1.9 < exposure.max() <= 2
    assert abs((exposure > 1).mean() - 0.5) < 0.1


def test_draws_are_keyed_by_seed_step_and_row() -> None:
    """A row does not depend on those read with it; another seed, step or row draws otherwise."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    batch = batch_of(*[(image, [(2, 3, 20, 12)])] * 8)
    run = lambda seed, step, rows: DetectionPipeline(seed, (24, 24), letterbox.parse(OPERATIONS))(  # noqa: E731
        {k: v[rows] for k, v in batch.items()}, step, np.array(rows)
    )
    whole = run(0, 0, [*range(8)])
    for rows in ([5], [6, 1]):
        part = run(0, 0, rows)
        assert all((part[k] == whole[k][rows]).all() for k in whole)
    assert len({x.tobytes() for x in whole["image"]}) == 8
    for seed, step in ((1, 0), (0, 1)):
        assert (run(seed, step, [*range(8)])["image"] != whole["image"]).any()


def made(count: int = 7) -> DetectionDataset:
    """Images of different sizes, image i with i boxes."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (10 + i, 30 - 2 * i, 3)).astype(np.uint8) for i in range(count)]
    marked = []
    for i, image in enumerate(images):
        truth = BoxAnnotations(
            np.array([[1, 2, 9, 10]] * i, float).reshape(-1, 4), np.zeros(i, int), *np.zeros((2, i), bool)
        )
        marked.append(AnnotatedImage(str(i), (image.shape[0], image.shape[1]), truth))
    return detection.make_detection_dataset("made", "train", marked, ["a"], images.__getitem__, {})


def test_through_plan_and_exam() -> None:
    """The contract of a batch, its rows apart as in the whole; in an evaluation the padding weighs nothing."""
    source = made()
    plan = BatchSampler(
        (ExampleSource(source),), (Phase(0, 5),), 0, DetectionPipeline(0, (16, 24), letterbox.parse("flip,jitter:0.1"))
    )
    whole, part = plan.batch(3), plan.batch(3, [4, 2])
    kinds = {k: (v.dtype, v.shape[1:]) for k, v in whole.items()}
    assert kinds == {
        "image": (np.float32, (16, 24, 3)),
        "boxes": (np.float32, (6, 4)),
        "box_labels": (np.int32, (6,)),
        "box_mask": (np.float32, (6,)),
        "weight": (np.float32, ()),
    }
    assert all((part[k] == whole[k][[4, 2]]).all() for k in whole)
    batches = list(source.eval_set(Reading(prepare=DetectionPipeline(0, (16, 24)))).batches(4, range(4)))
    assert [b["weight"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert [b["box_mask"].sum(1).tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flipp", "did you mean 'flip'"),
        ("crop:4", "unknown augmentation of images with boxes 'crop'"),
        ("flip:2", "'flip:2': write flip: left to right"),
        ("jitter", "'jitter': write jitter:X, X from 0 to 0.45: each edge"),
        ("jitter:0.5", "X from 0 to 0.45"),
        ("hue:x", "'hue:x': write hue:X"),
        ("saturation:nan", "saturation:X, X from 1 to 10"),
        ("exposure:0.5", "exposure:X, X from 1 to 10"),
        ("flip,hue:0.1,flip", "'flip' is given twice"),
    ],
)
def test_bad_operations_are_refused(text: str, says: str) -> None:
    """A misspelt operation or an amount out of range says what would be legal."""
    with pytest.raises(UsageError, match=says):
        letterbox.parse(text)


def test_operations_are_parsed() -> None:
    """None and nothing are no operations."""
    assert letterbox.parse(" flip, jitter:0.2") == (("flip", 0.0), ("jitter", 0.2))
    assert letterbox.parse(None) == letterbox.parse("") == ()
