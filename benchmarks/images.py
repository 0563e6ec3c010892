"""Images per second from a folder of JPEGs to normalised batches of 224 x 224, compared with a PyTorch DataLoader.

    python -m benchmarks.images [--images=256] [--repeats=7] [--out=benchmarks/results/images.json]

Synthetic photos of 500 x 375 are written as JPEGs, then read in batches of 32: decoded, a random crop resized to
224 x 224, flipped at random, with or without RandAugment (2 operations of magnitude 9), then normalised. The
alternative is a Dataset that opens files with Pillow and applies torchvision's transforms for Pillow images, written
out. A second one resizes with torch's antialiased interpolation. `workers` are processes; with 0, ours reads ahead in
one thread, and theirs reads when a batch is requested.

Each round times every contestant; a ratio is the median over rounds of our speed over theirs: above 1 ours is faster. A
round begins after the first batch, so that starting processes does not count.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import record
from data import loader
from data.images import augment, randaugment
from data.sampler import BatchSampler, Phase
from data.sources import image_folder
from data.types import ExampleSource

ROWS, SIDE = 32, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Read = Callable[[int], Iterator[Any]]  # workers -> batches


def write(root: Path, count: int) -> None:
    """Write JPEGs of two classes, with edges and gradients on many scales, as in photos."""
    rng = np.random.default_rng(0)
    for i in range(count):
        layers = []
        for side in (4, 16, 64, 256):
            noise = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8))
            layers.append(np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC), np.float32) / math.sqrt(side))
        image = sum(layers)
        image = (image - image.min()) / (image.max() - image.min()) * 255
        path = root / f"class{i % 2}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path, quality=90)


def canon(root: Path, text: str) -> Read:
    """Our sampler and loader, as `launch.py train` builds them."""
    images = augment.ImagePipeline(0, augment.parse(text), MEAN, DEVIATION, (SIDE, SIDE))
    plan = BatchSampler((ExampleSource(image_folder.load(str(root), "train")),), (Phase(0, ROWS),), 0, images)
    return lambda workers: loader.batches(plan, range(ROWS), 0, 10**6, workers=workers, prefetch=2)


class Photos(Dataset):
    """A user's own Dataset: a file opened with Pillow, cropped, flipped, augmented, normalised."""

    def __init__(self, root: Path, distorted: bool, by_torch: bool) -> None:
        self.paths, self.distorted, self.by_torch = sorted(root.rglob("*.jpg")), distorted, by_torch
        self.mean, self.deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        left, top, wide, tall = self.part(*image.size)
        image = image.crop((left, top, left + wide, top + tall))
        if not self.by_torch:
            image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.distorted:
            for name in random.choices(randaugment.NAMES, k=2):
                strength = 0.3 * random.choice((-1, 1))
                two = name in randaugment.SIGNED
                image = randaugment.SIGNED[name](image, strength) if two else randaugment.UNSIGNED[name](image, 0.3)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if self.by_torch:
            pixels = torch.nn.functional.interpolate(pixels[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
        scaled = pixels.float().div_(255)
        return scaled.sub_(self.mean).div_(self.deviation), int(self.paths[i].parent.name[-1])

    def part(self, x: int, y: int) -> tuple[int, int, int, int]:
        """A random crop, as in torchvision: left, top, width, height."""
        for _ in range(10):
            area = x * y * random.uniform(0.08, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= x and 0 < tall <= y:
                return random.randint(0, x - wide), random.randint(0, y - tall), wide, tall
        return 0, 0, x, y


def pytorch(root: Path, distorted: bool, by_torch: bool) -> Read:
    """Endless shuffled batches of Photos."""
    photos = Photos(root, distorted, by_torch)

    def read(workers: int) -> Iterator[Any]:
        kept = {"num_workers": workers, "persistent_workers": workers > 0}
        rows = DataLoader(photos, ROWS, shuffle=True, drop_last=True, **kept)
        while True:
            yield from rows

    return read


def speed(batches: Iterator[Any], count: int) -> float:
    """Images per second over `count` batches."""
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * ROWS / (time.perf_counter() - start)


def measure(contestants: dict[str, Read], workers: int, count: int, repeats: int) -> dict[str, Any]:
    """Interleaved rounds -> median images per second of each contestant, and the median ratio of ours to it."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, read in contestants.items():
            batches = read(workers)  # one contestant at a time, so that none reads ahead while another is timed
            for _ in range(1 + 2 * workers):
                next(batches)
            found[name].append(speed(batches, count))
            del batches
    return {
        name: {
            "median_images_per_second": round(statistics.median(speeds), 1),
            "canon_over_it": round(statistics.median(o / s for o, s in zip(found["canon"], speeds, strict=True)), 3),
            "images_per_second": [round(s, 1) for s in speeds],
        }
        for name, speeds in found.items()
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batches", type=int, default=12, help="batches of 32 images per round and contestant")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results/images.json")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error(f"--repeats={args.repeats}: a median wants at least 5")
    torch.set_num_threads(1)  # as in DataLoader's workers
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        write(root, args.images)
        for text in ("random_resized_crop,flip", "random_resized_crop,flip,randaugment:2:9"):
            distorted = "randaugment" in text
            contestants = {"canon": canon(root, text), "torch_dataloader_pillow": pytorch(root, distorted, False)}
            if not distorted:
                contestants["torch_dataloader_interpolate"] = pytorch(root, distorted, True)
            for workers in (0, 2):
                rows[f"{text}; {workers} workers"] = measure(contestants, workers, args.batches, args.repeats)
    record.write(args.out, ("torch", "PIL"), repeats=args.repeats, rows=rows)
    for name, row in rows.items():
        for who, cell in row.items():
            speeds = f"{cell['median_images_per_second']:8.1f} images/s   canon is {cell['canon_over_it']:.2f} times it"
            print(f"{name:52} {who:28} {speeds}")


if __name__ == "__main__":
    main()
