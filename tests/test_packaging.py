"""What a wheel and a source distribution hold, as setuptools builds them without network."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dsrl_offpolicy

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools, which builds the package")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for folder in ("dsrl_offpolicy", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def package_files() -> set[str]:
    """All that the package consists of."""
    files = (path for path in (ROOT / "dsrl_offpolicy").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_a_wheel_holds_the_package_whole_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert any(name.endswith(".yaml") for name in names) and "dsrl_offpolicy/py.typed" in names


def test_a_source_distribution_leaves_the_tests_out(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert package_files() <= names and "pyproject.toml" in names
    assert not any(name.startswith("tests") for name in names)


def test_both_have_the_version_of_the_package(built: tuple[Path, Path]) -> None:
    version = f"dsrl_offpolicy-{dsrl_offpolicy.__version__}"
    assert [path.name.partition("-py3")[0].removesuffix(".tar.gz") for path in built] == [version, version]
