"""What a wheel and a source distribution hold, as setuptools builds them without network."""

from __future__ import annotations

import email
import importlib.util
import os
import re
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
    wanted = ("py.typed", "analysis/report.html.j2", "configs/stage2_online.yaml", "configs/presets/fast.yaml")
    assert {f"dsrl_offpolicy/{name}" for name in wanted} <= names


def test_a_source_distribution_leaves_the_tests_out(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert package_files() <= names and "pyproject.toml" in names
    assert not any(name.startswith("tests") for name in names)


def test_both_have_the_version_of_the_package(built: tuple[Path, Path]) -> None:
    version = f"dsrl_offpolicy-{dsrl_offpolicy.__version__}"
    assert [path.name.partition("-py3")[0].removesuffix(".tar.gz") for path in built] == [version, version]


def test_a_wheel_says_which_pythons_it_supports(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == ">=3.11"
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier", [])))
    assert supported == ["3.11", "3.12", "3.13"]
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text()


def test_the_version_stands_in_one_place() -> None:
    version = dsrl_offpolicy.__version__
    assert f'version = "{version}"' not in (ROOT / "pyproject.toml").read_text()
    holders = [path for path in (ROOT / "dsrl_offpolicy").rglob("*.py") if f'"{version}"' in path.read_text()]
    assert holders == [ROOT / "dsrl_offpolicy" / "__init__.py"]
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()


INSTALLED = """
import sys
from dsrl_offpolicy.cli import main
assert main(["--version"]) == 0 and "torch" not in sys.modules and "numpy" not in sys.modules
from importlib.metadata import entry_points, version
import dsrl_offpolicy
assert version("dsrl_offpolicy") == dsrl_offpolicy.__version__ and sys.argv[1] in dsrl_offpolicy.__file__
(command,) = entry_points(group="console_scripts", name="dsrl")
assert command.load() is sys.modules["dsrl_offpolicy.cli"].run
from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.loading import parse_job
assert parse_job(Stage2Config, "stage2_online.yaml", "dsrl", ["--seed", "3"]).seed == 3
"""


def test_a_wheel_works_where_it_is_installed(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed as pip does it, away from the checkout: its version without torch, its command, its YAML."""
    pytest.importorskip("pip", reason="needs pip, which installs the wheel")
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(place)]
    subprocess.run([*pip, str(built[0])], check=True, capture_output=True, timeout=200)
    told = {**os.environ, "PYTHONPATH": str(place)}
    code = [sys.executable, "-P", "-c", INSTALLED, str(place)]
    done = subprocess.run(code, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == dsrl_offpolicy.__version__
