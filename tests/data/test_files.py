"""Which files of a folder are found: hidden ones, endings, links, and what is no file."""

import os
import socket
from pathlib import Path

import pytest

from data.files import expand_home, list_files
from documents import require_regular_file
from errors import UsageError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(root: Path, *endings: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_files(root, endings or (".txt",))]


def test_files_come_by_name_and_before_the_folders_beside_them(tmp_path: Path) -> None:
    fill(tmp_path, "b/x.txt", "b/a/y.txt", "c.txt", "a/z.txt", "a-b/w.txt", "B.txt")
    assert names(tmp_path) == ["B.txt", "c.txt", "a/z.txt", "a-b/w.txt", "b/x.txt", "b/a/y.txt"]


def test_endings_are_of_any_case(tmp_path: Path) -> None:
    fill(tmp_path, "a.TXT", "b.Txt", "c.text", "d.txt.bak", "e.TAR.GZ", "txt")
    assert names(tmp_path) == ["a.TXT", "b.Txt"]
    assert names(tmp_path, ".tar.gz", ".bak") == ["d.txt.bak", "e.TAR.GZ"]


def test_hidden_files_and_those_of_systems_are_passed_over(tmp_path: Path) -> None:
    """Below the root: its own name may be hidden."""
    left = (".a.txt", "._a.txt", ".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "@eaDir/a.txt", "b/.git/a.txt")
    root = fill(tmp_path / ".hidden", "a.txt", *left)
    (root / "lost+found").mkdir(mode=0)
    assert names(root) == ["a.txt"]


def test_links_do_not_multiply_files(tmp_path: Path) -> None:
    """Loops, two links to a file or a folder; a file goes by its own path though a link's name comes first."""
    root = fill(tmp_path / "root", "cat/1.txt", "dog/2.txt")
    (root / "loop").symlink_to(".")
    (root / "a").symlink_to("cat")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "0.txt").symlink_to("../dog/2.txt")
    (root / "cat" / "self").symlink_to("self")
    (root / "a-note").symlink_to("dog/2.txt")
    assert names(root) == ["cat/1.txt", "dog/2.txt"]
    outside = fill(tmp_path / "outside", "3.txt", "4.dat", "deep/5.txt")
    (root / "dog" / "3.txt").symlink_to(outside / "3.txt")
    (root / "dog" / "three.txt").symlink_to(outside / "3.txt")
    (root / "eel").symlink_to(outside / "deep")
    (root / "fox").symlink_to(outside / "deep")
    (root / "eel.txt").symlink_to(outside / "4.dat")
    assert names(root) == ["eel.txt", "cat/1.txt", "dog/2.txt", "dog/3.txt", "eel/5.txt"]
    assert [p.name for p in list_files(root / "loop", (".txt",))] == ["eel.txt", "1.txt", "2.txt", "3.txt", "5.txt"]


def test_many_links_to_each_other_take_no_time(tmp_path: Path) -> None:
    for i in range(20):
        fill(tmp_path, f"{i}/x.txt")
        for k in range(20):
            (tmp_path / str(i) / f"to{k}").symlink_to(f"../{k}")
    assert len(names(tmp_path)) == 20


def test_what_is_no_regular_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never opened; one without the ending is passed over, and a folder may have any name."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    fill(tmp_path, "folder.txt/a.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    assert names(tmp_path) == ["folder.txt/a.txt"]
    os.mkfifo(tmp_path / "z.TXT")
    with pytest.raises(UsageError, match=r"z\.TXT cannot be read: it is a pipe, not a regular file"):
        list_files(tmp_path, (".txt",))
    (tmp_path / "z.TXT").unlink()
    (tmp_path / "z.txt").symlink_to("pipe")
    with pytest.raises(UsageError, match=r"z\.txt cannot be read: it is a pipe, not a regular file"):
        list_files(tmp_path, (".txt",))
    (tmp_path / "z.txt").unlink()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind("s.txt")
        with pytest.raises(UsageError, match=r"s\.txt cannot be read: it is a socket, not a regular file"):
            list_files(tmp_path, (".txt",))
    (tmp_path / "s.txt").unlink()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"gone\.txt cannot be read: it is a broken link"):
        list_files(tmp_path, (".txt",))
    for other, says in (("/dev/null", "a device"), (str(tmp_path), "a folder"), ("none", "No such file")):
        with pytest.raises(UsageError, match=says):
            require_regular_file(other)


def test_a_folder_that_cannot_be_listed_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/x.txt", "b/y.txt")
    scan = os.scandir

    def closed(path: str) -> object:
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UsageError, match="b cannot be listed: Permission denied"):
        list_files(tmp_path, (".txt",))


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_home(p) for p in ("~", "~/a", "a~", "/b")] == ["/home/me", "/home/me/a", "a~", "/b"]
