"""The documents: links lead somewhere, commands are legal, rows of tables fit a window, README is short."""

import ast
import builtins
import re
import shlex
from pathlib import Path

from cli.flags import define_flags
from configs import reader
from configs.knobs import KNOBS, OPEN
from docs import generate
from errors import UsageError
from tests.support import ROOT

PAGES = [  # docs/log.md, the records and CHANGELOG.md keep the names of their day
    page
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in ("log.md", "CHANGELOG.md")
]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    """A page's code blocks in a language; those without one hold commands and output."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(page: Path) -> list[list[str]]:
    """The words after `launch.py` of each command in a page's code blocks, its comment left out."""
    lines = {line for block in blocks(page, "") for line in block.splitlines() if "python launch.py " in line}
    return [shlex.split(line.partition("launch.py ")[2], comments=True) for line in sorted(lines)]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_rows_of_tables_fit_a_window() -> None:
    lines = [(page.name, line) for page in PAGES for line in page.read_text().splitlines()]
    assert [(name, line) for name, line in lines if line.startswith("|") and len(line) > 170] == []


def test_links_lead_somewhere() -> None:
    """A link inside the repository names a file, and a heading of it if it has an anchor."""
    lost = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            if "://" not in target and not (file.exists() and (not anchor or anchor in anchors(file))):
                lost.append((page.name, target))
    assert lost == []


def test_commands_are_legal() -> None:
    """The verb, its flags, the config and the knobs of each command in a code block exist."""
    wrong, seen = [], set()
    for page in PAGES:
        for verb, *words in commands(page):
            flags = set(define_flags(verb))
            for word in (word for word in words if word.startswith("--")):
                name, _, value = word.removeprefix("--").partition("=")
                own = f"`{value.partition(':')[0]}`:" in page.read_text()  # a file that the page itself gives
                if name == "config" and not own and "FAMILY" not in value and value not in seen:
                    seen.add(value)
                    try:
                        reader.read(str(ROOT / value))
                    except UsageError as error:
                        wrong.append((page.name, word, str(error)))
                elif name not in flags and not is_knob(name):
                    wrong.append((page.name, word, f"no flag of {verb}, and no knob"))
    assert wrong == []


def test_names_in_code_are_bound() -> None:
    """Every name that a page's Python reads is bound on that page, or is a builtin."""
    unbound = []
    for page in PAGES:
        whole = [block for block in blocks(page, "python") if page.name == "python.md" or "import " in block]
        trees = [ast.parse(block) for block in whole]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        names = [node for node in nodes if isinstance(node, ast.Name)]
        bound = {name.id for name in names if not isinstance(name.ctx, ast.Load)} | set(dir(builtins))
        bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        unbound += [(page.name, name.id) for name in names if name.id not in bound]
    assert unbound == []


def test_imports_in_code_are_there() -> None:
    """Each import of a Python block works; docs/add_a_family.md has a test of its whole code."""
    for page in PAGES:
        for block in (block for block in blocks(page, "python") if "import " in block):
            body = [n for n in ast.parse(block).body if isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(body, []), page.name, "exec"), {})


def is_knob(name: str) -> bool:
    key = name.removeprefix("config.")
    return key != name and (key in KNOBS or key.startswith(OPEN))


def test_knobs_named_in_prose_exist() -> None:
    """`--config.KEY`, wherever a page mentions it."""
    named = {(page.name, name) for page in PAGES for name in re.findall(r"--(config\.[a-z_.]+)", page.read_text())}
    assert [(page, name) for page, name in sorted(named) if not is_knob(name.rstrip("."))] == []


def test_generated_pages_are_current() -> None:
    """`make docs` writes them."""
    assert [name for name, page in generate.PAGES.items() if (ROOT / "docs" / name).read_text() != page()] == []
