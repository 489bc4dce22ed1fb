"""What several tests share: checked shapes, the shared folder, commands, and a chain of tiny trained stages."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor


def _check_shapes_at_run_time() -> None:
    """Every annotated call of the package is checked by beartype, shapes included (only under pytest).

    Must run before anything imports the package.
    """
    import jaxtyping

    jaxtyping.install_import_hook("dsrl_offpolicy", "beartype.beartype")
    torch.set_num_threads(1)


_check_shapes_at_run_time()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """The lines on standard error."""
        return self.err.splitlines()


def run_dsrl(argv: Sequence[object]) -> Outcome:
    """``dsrl ARGV`` in this process; an exception other than the interpreter's exit is a traceback for a user."""
    from dsrl_offpolicy.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in argv])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def run_command() -> Callable[[Sequence[object]], Outcome]:
    """Runs ``dsrl`` in this process and tells status, output and errors."""
    return run_dsrl


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the checkout, with real demonstrations and reference files."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} (real demonstrations), which this machine does not have")
    return folder


@pytest.fixture(scope="session")
def maniskill() -> None:
    """Skips where ManiSkill cannot build a scene: it needs its package and a Vulkan device, for states too."""
    if importlib.util.find_spec("mani_skill") is None:
        pytest.skip("needs the extra maniskill (pip install 'dsrl_offpolicy[maniskill]')")
    from dsrl_offpolicy.envs.families.render_device import render_device
    from dsrl_offpolicy.errors import InputError

    try:
        render_device()
    except InputError:
        pytest.skip("needs a Vulkan device, such as Mesa's lavapipe (scripts/setup_software_rendering.sh)")


@pytest.fixture(scope="session")
def robosuite() -> None:
    """Skips where robosuite cannot be imported: it needs its package and EGL, for states too."""
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("needs the extra robosuite (pip install 'dsrl_offpolicy[robosuite]')")
    try:
        import robosuite  # noqa: F401
    except (ImportError, AttributeError):
        pytest.skip("needs EGL for robosuite (apt-get install libegl1 libegl-mesa0)")


@pytest.fixture(scope="session")
def tiny_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short lever-pull demonstrations, by ``dsrl demos``."""
    from tiny_worlds import TASK

    path = tmp_path_factory.mktemp("demos") / "tiny.h5"
    done = run_dsrl(["demos", "--env_id", TASK, "--out", path, "--episodes", 6, "--demo_steps", 90])
    assert done.status == 0, done.err
    return path


@pytest.fixture(scope="session")
def tiny_stage0(tiny_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a hardly trained base policy, by ``dsrl pretrain``."""
    from tiny_worlds import TINY_BASE

    folder = tmp_path_factory.mktemp("stage0") / "run"
    done = run_dsrl(["pretrain", "--demo_path", tiny_demos, "--out", folder, *TINY_BASE])
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_stage0: Path) -> Path:
    """Checkpoint of that base policy."""
    return tiny_stage0 / "checkpoints" / "last.pt"


@pytest.fixture(scope="session")
def tiny_stage1(tiny_demos: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a hardly trained latent policy, by ``dsrl stage1``."""
    from tiny_worlds import TINY_STAGE1

    folder = tmp_path_factory.mktemp("stage1") / "run"
    files = ["--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base, "--out", folder]
    done = run_dsrl(["stage1", *files, *TINY_STAGE1])
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="session")
def reach_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a hardly trained base policy for the runs of ``stoppable_runs``."""
    from stoppable_runs import make_base

    return make_base(tmp_path_factory.mktemp("reach"))


@pytest.fixture
def golden_files(tmp_path: Path) -> Path:
    """Real files of every kind, in the current format; the Stage 2 run among them can go on in its new place."""
    import yaml

    from dsrl_offpolicy.files.formats import FORMAT_VERSION

    folder = tmp_path / "files"
    shutil.copytree(Path(__file__).parent / "golden" / f"format-{FORMAT_VERSION}", folder)
    config = folder / "stage2" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    for name in ("awsc_checkpoint", "stage1_checkpoint"):
        settings[name] = str(folder / settings[name])
    config.write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def no_host_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes whatever outside of torch reads a tensor's value on the host fail (torch keeps Adam's step there)."""
    torch_folder = str(Path(torch.__file__).parent)

    def guarded(name: str) -> Callable:
        original = getattr(torch.Tensor, name)

        def read(self: Tensor, *args: object, **kwargs: object) -> object:
            if not sys._getframe(1).f_code.co_filename.startswith(torch_folder):
                raise AssertionError(f"Tensor.{name} waits for the device")
            return original(self, *args, **kwargs)

        return read

    names = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__format__", "__repr__")
    for name in names:
        monkeypatch.setattr(torch.Tensor, name, guarded(name))
    with pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(()))
