"""Documents hold together: links lead somewhere, paths and tests that they name exist, the README says where everything is."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import d2v_plugin

ROOT = Path(__file__).parents[1]
NO_DOCUMENTS = {"out", "build", "node_modules"}  # what runs and builds leave in a checkout
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in NO_DOCUMENTS for part in path.relative_to(ROOT).parts[:-1])
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOOR: dict[str, int] = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))["FLOOR"]

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def drop_code(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def find_anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", drop_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)

    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def find_broken_links(path: Path) -> Iterator[str]:
    text = drop_code(path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path if file == "" else path.parent / file
        if not there.exists():
            yield f"{target}: there is no such file"
        elif anchor and anchor not in find_anchors(there):
            yield f"{target}: there is no such heading"


def find_missing_paths(path: Path) -> Iterator[str]:
    """Paths from the root of the repository that a page names, in prose and in commands; patterns left out."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"(?<![\w/.$}-])(?:tools|recipes|manifests|tests|d2v_plugin)/[\w./-]*[\w/]", text):
        is_pattern = text[found.end() : found.end() + 1] in ("*", "{", "<")
        is_test = text[found.end() : found.end() + 2] == "::" and (ROOT / "tests" / found[0]).exists()  # named from tests/ on
        if not is_pattern and not is_test and not (ROOT / found[0]).exists():
            yield found[0]


def test_there_are_pages() -> None:
    assert len(PAGES) > 20 and ROOT / "README.md" in PAGES


@page
def test_links_lead_somewhere(path: Path) -> None:
    assert list(find_broken_links(path)) == []


@page
def test_paths_exist(path: Path) -> None:
    assert list(find_missing_paths(path)) == []


def test_broken_links_and_paths_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n\n[x](#a-b-c) [x](#a) [x](no.md) ![x](no.png) [x](https://a.b)\n`tools/no.py`, `recipes/no_*.yaml`\n"
    )

    assert [link.partition(":")[0] for link in find_broken_links(page)] == ["#a", "no.md", "no.png"]
    assert list(find_missing_paths(page)) == ["tools/no.py"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        path = left.pop()
        if path not in reached:
            reached.add(path)
            links = re.findall(r"\]\(([^)#\s]+\.md)", drop_code(path.read_text(encoding="utf-8")))
            left += [(path.parent / link).resolve() for link in links if not link.startswith("http")]

    assert [str(path.relative_to(ROOT)) for path in PAGES if path not in reached] == []


def test_the_tests_of_the_page_of_faults_exist() -> None:
    text = (ROOT / "d2v_plugin" / "training" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)

    assert len(named) >= 35 and len(named) == text.count("::")
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_the_readme_is_short() -> None:
    lines = README.splitlines()

    assert len(lines) <= 160
    assert lines.index("<!-- line: demo -->") <= 35 and lines.index("<!-- code: load -->") <= 50


def test_the_tree_of_the_readme_has_every_folder() -> None:
    found = re.search(r"<!-- tree -->\n```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    rooms = dict(re.findall(r"^  (\w+)/ +\[(\d)\] \S", found[1], re.MULTILINE))
    folders = re.findall(r"^([\w.]+)/ ", found[1], re.MULTILINE)

    assert {name: int(floor) for name, floor in rooms.items()} == {
        name: floor for name, floor in FLOOR.items() if (ROOT / "d2v_plugin" / name).is_dir()
    }
    here = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*"))}
    assert set(folders) == {"d2v_plugin", "recipes", "manifests", "tools", "tests", ".ci"} <= here


def test_the_table_of_floors_is_that_of_the_architecture() -> None:
    text = (ROOT / "d2v_plugin" / "README.md").read_text(encoding="utf-8").partition("<!-- floors -->")[2].partition("\n\n")[0]
    floors = {
        int(floor): re.findall(r"`(\w+)`", names) for floor, names in re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE)
    }

    assert {name: floor for floor, names in floors.items() for name in names} == FLOOR


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")

    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", d2v_plugin.__version__]
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == d2v_plugin.__version__  # type: ignore[index]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("failing", [None, "pip", "pytest", "check", "format", "mypy", "packages", "newcomer"])
def test_ci_fails_when_a_step_fails(tmp_path: Path, failing: str | None) -> None:
    """`.ci/run` of a repository in which every command is a stand-in."""
    checkout, commands = tmp_path / "checkout", tmp_path / "commands"
    (checkout / ".ci").mkdir(parents=True)
    commands.mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    (checkout / "README.md").write_text("<!-- line: test -->\n```\npip install . && pytest\n```\n")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    step = '#!/bin/sh\necho "5 passed in 1s"\ncase "$0 $1" in *' + str(failing) + "*) exit 3;; esac\n"
    for name in ("packages", "newcomer"):
        (checkout / ".ci" / name).write_text(step)
        (checkout / ".ci" / name).chmod(0o755)
    for name, code in {
        **dict.fromkeys(("pip", "pytest", "ruff", "mypy"), step),
        "python": '#!/bin/sh\nmkdir -p "$3/bin" && : > "$3/bin/activate"\n',  # python -m venv FOLDER
    }.items():
        (commands / name).write_text(code)
        (commands / name).chmod(0o755)

    result = subprocess.run(
        [checkout / ".ci" / "run"],
        env={"PATH": f"{commands}:/usr/bin:/bin", "PYTHON": str(commands / "python")},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (result.returncode == 0) == (failing is None), result.stdout + result.stderr
