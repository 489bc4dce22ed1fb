"""What ``--help_all`` says of every flag of every command: its default, and the unit of a number."""

from __future__ import annotations

import re

import pytest

HELP = [
    *(["demos"], ["pretrain"], ["stage1"], ["stage2"], ["ppo"], ["eval"], ["quickstart"]),
    *(["probe"], ["serve"], ["doctor", "env"]),
    *(["stage2", "--algo", "na"], ["stage2", "--algo", "lps"]),
]
ENTRY = re.compile(r"^  --(\w+)(?:, --\w+| (\S+(?: \.\.\.)?))?\s+(.*?)(?=^  --|^\S|\Z)", re.MULTILINE | re.DOTALL)
COUNTED = (
    "step iteration macro-transition episode demonstration trajector window state observation frame pixel row "
    "latent noise vector draw candidate pass video environment thread head feature layer width seed port"
)
MEASURED = "second millisecond MiB metre nat return standard_deviation units_of rate"
WITHOUT_UNIT = "share fraction probability correlation decay factor coefficient pessimism ratio bound temperature"
UNITS = re.compile(rf"\b({'|'.join(f'{COUNTED} {MEASURED} {WITHOUT_UNIT}'.split())})", re.IGNORECASE)


@pytest.fixture
def entries(run_command, monkeypatch, request) -> dict[str, tuple[str, str]]:
    """Of each flag: how its value is written, and what is said of it."""
    monkeypatch.setenv("COLUMNS", "115")
    done = run_command([*request.param, "--help_all"])
    found = {flag: (takes, " ".join(told.split())) for flag, takes, told in ENTRY.findall(done.out)}
    assert done.status == 0 and len(found) == len(re.findall(r"^  --", done.out, re.MULTILINE)) > 5
    return found


@pytest.mark.parametrize("entries", HELP, indirect=True, ids=" ".join)
def test_every_flag_says_its_default_or_that_it_is_required(entries):
    silent = [
        flag for flag, (_, told) in entries.items() if not re.search(r"\[.+\]$|[Dd]efault|[Rr]equired", told)
    ]
    assert silent == []


@pytest.mark.parametrize("entries", HELP, indirect=True, ids=" ".join)
def test_every_number_says_what_it_is_counted_in(entries):
    numbers = {flag: told for flag, (takes, told) in entries.items() if "INT" in takes or "FLOAT" in takes}
    assert numbers
    bare = {flag: told for flag, told in numbers.items() if not UNITS.search(told.replace(" of ", "_of ", 1))}
    assert bare == {}
