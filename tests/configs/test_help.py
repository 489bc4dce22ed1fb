"""``--help_all``: every flag says what it is and what it is without being given."""

from __future__ import annotations

from dataclasses import fields

import pytest

from dsrl_offpolicy.agents.stage2_config import stage2_config
from dsrl_offpolicy.configs import jobs
from dsrl_offpolicy.configs.help import help_text
from dsrl_offpolicy.registry import ALGORITHMS

JOBS = [
    jobs.DemosConfig, jobs.Stage0Config, jobs.Stage1Config, jobs.PPOConfig, jobs.EvalConfig, jobs.QuickstartConfig,
    jobs.DoctorEnvConfig, jobs.ProbeConfig, *(stage2_config(name) for name in ALGORITHMS.names()),
]  # fmt: skip
ASKED_FOR = {"base", "awsc_checkpoint", "demo_path", "resume"}
"""Flags without a default: a command asks for them, or does something else with them."""


def entries(job: type) -> dict[str, str]:
    """The text of each flag in ``--help_all``, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in help_text(job(), "dsrl x", everything=True).splitlines():
        if line.startswith("  --"):
            name = line.split()[0].removeprefix("--").rstrip(",")
            found[name] = ""
        elif not line.startswith("   "):
            name = ""
        if name:
            found[name] += " " + line.strip()
    return found


@pytest.mark.parametrize("job", JOBS, ids=lambda job: getattr(job, "algo", "") or job.__name__)
def test_every_flag_tells_its_default(job: type) -> None:
    told = entries(job)
    for field in fields(job):
        text = told[field.name]
        words = text.split("  ")[-1]
        assert len(words.split()) >= 2, f"{field.name} is not explained"
        if field.default is None:
            assert field.name in ASKED_FOR or "default" in text.lower(), text
        elif isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"[{field.default:g}]" in text or f"[{field.default}]" in text, text
