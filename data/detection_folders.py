"""A user's folder of images with boxes, by the form of its annotations."""

from collections.abc import Callable
from pathlib import Path

from data import coco, files, voc, yolo_labels
from data.annotations import SplitReader, assemble, key
from data.detection import DetectionDataset
from data.image_files import EXTENSIONS
from data.progress import Tick, silent
from errors import UsageError

UNSUPPORTED = {  # annotations of other tools
    "_annotations.createml.json": "CreateML",
    "_annotations.csv": "a table",
    "annotations.xml": "CVAT",
}


def find_reader(name: str, tick: Tick = silent) -> tuple[Callable[[str], DetectionDataset], tuple[str, ...]] | None:
    """The reader and the splits of a folder of images with boxes, or None where it is none.

    Raises UsageError for a form that is not read, and for a folder with annotations of two forms.
    """
    form = _find_format(Path(name)) if Path(name).is_dir() else None
    if form is None:
        return None
    read, splits = form
    return lambda split: assemble(read(split), tick), splits


def _find_format(root: Path) -> SplitReader | None:
    if found := coco.find_reader(root) or voc.find_reader(root):
        return found
    for unread, tool in UNSUPPORTED.items():
        for file in (*files.glob_any_case(root, unread), *files.glob_any_case(root, f"*/{unread}")):
            raise UsageError(f"{file} is the form of {tool}, which is not read: export as COCO, Pascal VOC or YOLO")
    below = files.list_files(root, (*EXTENSIONS, ".txt", ".xml"))
    texts, xmls = ([file for file in below if file.suffix.lower() == ending] for ending in (".txt", ".xml"))
    images = [file for file in below if file.suffix.lower() in EXTENSIONS]
    keys = {key(image, root) for image in images} if texts or xmls else set()
    marked = [file for file in xmls if key(file, root) in keys]
    labelled = yolo_labels.find_reader(root, images, texts) if texts else None
    if marked and labelled:
        raise UsageError(f"{root} has boxes in .xml, as {marked[0].relative_to(root)}, and in .txt: take one kind away")
    if marked and (lists := [file for file in texts if file.parts[-3:-1] == voc.LISTS]):
        raise UsageError(f"{root} has lists of Pascal VOC further below, as {lists[0]}: give {lists[0].parents[2]}")
    return voc.reader_of_pairs(root, images, xmls) if marked else labelled
