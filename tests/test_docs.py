"""No page names a file, a module or a flag that does not exist."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from extending import shown_files
from test_imports import LEVEL, PACKAGE

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs import jobs, serve

ROOT = PACKAGE.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REPOSITORY = ("benchmarks", "docs", "dsrl_offpolicy", "scripts", "tests")
OF_RUNS = {
    "checkpoints", "replay", "stage0", "stage1", "stage2", "tensorboard", "unfinished", "wandb", "<out>.parts",
}  # fmt: skip
"""Folders of runs and of recordings, which are no folders of the repository."""

OF_OTHER_TOOLS = {"logdir", "signal", "head", "address", "repo", "set"}
"""Flags that pages name and that are not ours: TensorBoard's, Slurm's, Ray's, Helm's."""

DATA = (".csv", ".json", ".jsonl", ".png", ".pt", ".yaml")

NAME = re.compile(r"`([\w<>./-]+)`")
ANYWHERE = re.compile(rf"(?<![\w/.])(?:{'|'.join(REPOSITORY)})/[\w./-]*\w")
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
LINK = re.compile(r"\]\(([^)#\s]+)")
HEADING_LINK = re.compile(r"\]\(((?!http)[^)#\s]*)#([^)\s]+)\)")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def missing_paths(text: str, page: Path) -> list[str]:
    """Paths and dotted names that look like ours and are not there."""
    found = []
    for name in dict.fromkeys([*NAME.findall(text), *ANYWHERE.findall(text)]):
        first = re.split(r"[/.]", name)[0]
        if name.startswith("my_"):  # a reader's own file
            there = True
        elif name.endswith("/") and first not in OF_RUNS:
            there = any((base / name).is_dir() for base in (ROOT, PACKAGE, page.parent))
        elif name.endswith((".py", ".sh")) and "/" not in name:
            there = (
                name in shown_files()
                or any(any((ROOT / folder).rglob(name)) for folder in REPOSITORY)
                or bool([*ROOT.glob(name)])
            )
        elif name.endswith((".py", ".sh")) or (first in REPOSITORY and "/" in name):
            there = any((base / name).exists() for base in (ROOT, PACKAGE, page.parent))
        elif first in LEVEL and re.fullmatch(r"\w+(\.\w+)+", name) and not name.endswith(DATA):
            there = defined(name.split("."))
        else:
            there = True
        if not there:
            found.append(name)
    return found


def defined(parts: list[str]) -> bool:
    """Whether ``room.module.name`` is a module, or a name that it defines."""
    path = PACKAGE
    for i, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
        elif (path / f"{part}.py").is_file():
            rest, text = parts[i + 1 :], (path / f"{part}.py").read_text()
            return not rest or re.search(rf"^(?:def |class )?{rest[0]}\b", text, re.MULTILINE) is not None
        else:
            return False
    return True


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Flags of jobs, tools and the algorithm in docs/extending, and those of benchmarks and scripts."""
    held = [
        c
        for c in [*vars(jobs).values(), *vars(serve).values(), Stage2Config]
        if isinstance(c, type) and is_dataclass(c)
    ]
    of_jobs = {field.name for config in held for field in fields(config)} | {
        "config",
        "help",
        "help_all",
        "version",
    }

    def parsed(*folders: Path) -> set[str]:
        return {f for d in folders for p in d.rglob("*.py") for f in re.findall(r'"--([a-z]\w*)"', p.read_text())}

    shown = {f for text in shown_files().values() for f in re.findall(r"^    (\w+): ", text, re.MULTILINE)}
    return {"commands": of_jobs | parsed(PACKAGE) | shown, "others": parsed(ROOT / "benchmarks", ROOT / "scripts")}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_paths_and_names_exist(page):
    assert missing_paths(page.read_text(), page) == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files(page):
    targets = [t for t in LINK.findall(page.read_text()) if not t.startswith(("http:", "https:"))]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def headings(page: Path) -> set[str]:
    """What a link to a page may end in: its headings in lower case, spaces as hyphens, without punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_headings(page):
    dead = [
        f"{target}#{heading}"
        for target, heading in HEADING_LINK.findall(page.read_text())
        if heading not in headings(page.parent / target if target else page)
    ]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_flags_exist(page, flags):
    text = page.read_text()
    known = flags["commands"] | (flags["others"] if page.parent != ROOT else set())
    known |= set(re.findall(r"^    (\w+): \w+ = ", text, re.MULTILINE))  # settings of a class that the page shows
    assert sorted(set(FLAG.findall(text)) - known - OF_OTHER_TOOLS) == []


@pytest.mark.parametrize(
    "text",
    ["`train/wiring.py`", "`reports/`", "`seeding.derive_sed`", "`train.wiring`", "`nowhere.py`",
     "see tests/test_nothing.py", "python benchmarks/none.py --out x"],
)  # fmt: skip
def test_what_is_not_there_is_found(text):
    assert len(missing_paths(text, ROOT / "README.md")) == 1


@pytest.mark.parametrize(
    "text",
    ["`train/run.py`", "`envs/families/`", "`seeding.derive_seed`", "`unfinished/`", "`registry.py`",
     "`runs/x.png`", "`demos/<task>-seed<N>.h5`", "`evaluation.csv`", "`q_mean`", "`1.5`"],
)  # fmt: skip
def test_what_is_there_or_is_no_file_of_ours_is_left_alone(text):
    assert missing_paths(text, ROOT / "README.md") == []
