"""A user's folder of images with boxes, by the form of its annotations."""

from collections.abc import Callable
from pathlib import Path

from data import coco, files, voc, yolo_labels
from data.annotations import Form, assemble, key
from data.detection import Scenes
from data.image_files import ENDINGS
from data.progress import Tick, silent
from errors import UsageError

UNREAD = {  # annotations of other tools
    "_annotations.createml.json": "CreateML",
    "_annotations.csv": "a table",
    "annotations.xml": "CVAT",
}


def find(name: str, tick: Tick = silent) -> tuple[Callable[[str], Scenes], tuple[str, ...]] | None:
    """The reader and the splits of a folder of images with boxes, or None where it is none.

    Raises UsageError for a form that is not read, and for a folder with annotations of two forms.
    """
    form = _form(Path(name)) if Path(name).is_dir() else None
    if form is None:
        return None
    read, splits = form
    return lambda split: assemble(read(split), tick), splits


def _form(root: Path) -> Form | None:
    if found := coco.find(root) or voc.find(root):
        return found
    for unread, tool in UNREAD.items():
        for file in (*files.match(root, unread), *files.match(root, f"*/{unread}")):
            raise UsageError(f"{file} is the form of {tool}, which is not read: export as COCO, Pascal VOC or YOLO")
    below = files.find(root, (*ENDINGS, ".txt", ".xml"))
    texts, xmls = ([file for file in below if file.suffix.lower() == ending] for ending in (".txt", ".xml"))
    images = [file for file in below if file.suffix.lower() in ENDINGS]
    keys = {key(image, root) for image in images} if texts or xmls else set()
    marked = [file for file in xmls if key(file, root) in keys]
    labelled = yolo_labels.find(root, images, texts) if texts else None
    if marked and labelled:
        raise UsageError(f"{root} has boxes in .xml, as {marked[0].relative_to(root)}, and in .txt: take one kind away")
    if marked and (lists := [file for file in texts if file.parts[-3:-1] == voc.LISTS]):
        raise UsageError(f"{root} has lists of Pascal VOC further below, as {lists[0]}: give {lists[0].parents[2]}")
    return voc.find_beside(root, images, xmls) if marked else labelled
