"""Folders of images with boxes, by the format of their annotations."""

from pathlib import Path

from data import files
from data.images.decode import EXTENSIONS
from data.sources import coco, voc, yolo_labels
from data.sources.annotations import SplitReader, assemble, key
from data.sources.reader import Reader, Request, checked_reader
from errors import UsageError

UNSUPPORTED = {  # annotation files of other formats
    "_annotations.createml.json": "CreateML",
    "_annotations.csv": "a table",
    "annotations.xml": "CVAT",
}


def find(request: Request) -> Reader | None:
    """The reader of a folder of images with boxes.

    Raises UsageError for an unsupported format, and for a folder with annotations of two formats.
    """
    found = find_format(request.path) if request.path.is_dir() else None
    if found is None:
        return None
    read, splits = found
    return checked_reader(request.name, lambda: splits, lambda split: assemble(read(split), request.tick))


def find_format(root: Path) -> SplitReader | None:
    """The reader and the splits of a folder, by the format of its annotations; None without any. Raises UsageError."""
    if found := coco.find_reader(root) or voc.find_reader(root):
        return found
    for unread, tool in UNSUPPORTED.items():
        for file in (*files.glob_any_case(root, unread), *files.glob_any_case(root, f"*/{unread}")):
            raise UsageError(f"{file} is in the format of {tool}, which is not read: export COCO, Pascal VOC or YOLO")
    below = files.list_files(root, (*EXTENSIONS, ".txt", ".xml"))
    texts, xmls = ([file for file in below if file.suffix.lower() == ending] for ending in (".txt", ".xml"))
    images = [file for file in below if file.suffix.lower() in EXTENSIONS]
    keys = {key(image, root) for image in images} if texts or xmls else set()
    voc_files = [file for file in xmls if key(file, root) in keys]
    yolo = yolo_labels.find_reader(root, images, texts) if texts else None
    if voc_files and yolo:
        example = voc_files[0].relative_to(root)
        raise UsageError(f"{root} has boxes in .xml, as {example}, and in .txt: remove one format")
    if voc_files and (lists := [file for file in texts if file.parts[-3:-1] == voc.LISTS]):
        raise UsageError(f"{root} has lists of Pascal VOC further below, as {lists[0]}: give {lists[0].parents[2]}")
    return voc.reader_of_pairs(root, images, xmls) if voc_files else yolo
