"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from importlib import resources
from typing import Any

from dsrl_offpolicy.analysis.report import Report
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import percent

EXTRA = "pip install 'dsrl_offpolicy[report]' (or: pip install plotly jinja2)"
"""What gets the libraries of this module."""


def check_installed() -> None:
    """Refuse to begin without the libraries that draw.

    Raises:
        InputError: naming the extra.
    """
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise InputError(f"a report needs {error.name}, which is not installed: {EXTRA}") from error


def render(report: Report) -> str:
    """Return the page.

    Everything that comes from files is escaped, and the page's policy lets no script run but its own.
    """
    check_installed()
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    from dsrl_offpolicy.analysis.report_charts import AXES, draw

    sections = draw(report)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = resources.files("dsrl_offpolicy.analysis").joinpath("report.html.j2").read_text()
    charts: list[dict[str, Any]] = [
        asdict(chart) for section in sections for chart in (*section.charts, *section.more)
    ]
    return environment.from_string(template).render(
        report=report,
        sections=sections,
        charts=charts,
        axes=AXES,
        plotly=get_plotlyjs(),
        nonce=secrets.token_hex(16),
        version=_version(),
    )


def _version() -> str:
    from dsrl_offpolicy import __version__

    return __version__
