"""``dsrl report``: one file that is whole, asks for nothing, runs nobody's script, and is never written over."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import write_quickstart, write_stage2
from tiny_worlds import snapshot

from dsrl_offpolicy.analysis.report import make_report
from dsrl_offpolicy.analysis.report_charts import MOST_POINTS, draw

CURVE = [8, 14, 19]


class Page(HTMLParser):
    """Tags with their attributes, the text of scripts, and everything else that is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture
def quick(tmp_path, monkeypatch) -> Path:
    """A whole quickstart; its folder's parent is the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_quickstart(tmp_path / "quick", 1, CURVE)


def test_the_file_is_whole_and_the_run_folder_unchanged(run_command, quick):
    before = snapshot(quick)
    done = run_command(["report", "quick"])
    assert (done.status, done.err) == (0, "") and "wrote report.html" in done.out
    page = Page(Path("report.html").read_text())
    assert "Stage 2 is better than its base policy" in page.text and "q_bounded" in page.text
    assert snapshot(quick) == before


def test_nothing_is_asked_of_a_network(run_command, quick):
    run_command(["report", "quick"])
    page = Page(Path("report.html").read_text())
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in addresses)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src" not in policy and "unsafe-eval" not in policy
    nonces = {attrs.get("nonce") for tag, attrs in page.tags if tag == "script"}
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in policy


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def test_what_files_say_is_shown_and_never_run(run_command, quick):
    config = quick / "stage2" / "config.yaml"
    config.write_text(config.read_text() + json.dumps({"env_id": EVIL})[1:-1].replace('"env_id"', "env_id") + "\n")
    table = json.loads((quick / "evaluation.json").read_text())
    (quick / "evaluation.json").write_text(json.dumps([*table, {**table[0], "policy": EVIL}]))
    with (quick / "stage2" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"group": "train", "env_steps": 30_000, EVIL: 1.0}) + "\n")
    assert run_command(["report", "quick"]).status == 0
    page = Page(Path("report.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and "img" not in tags and not any("onerror" in a for _, a in page.tags)
    assert page.text.count(EVIL) >= 3  # a setting, a policy and a metric, as they are written
    names = {t["name"] for s in draw(make_report([quick], 0.8)) for c in s.charts for t in c.traces}
    assert not any("<" in name for name in names)  # Plotly reads names as a kind of HTML


@pytest.mark.parametrize("out", ["report.html", "taken/of.html", "folder"])
def test_nothing_is_written_over(run_command, quick, out):
    Path("report.html").write_text("precious")
    Path("taken").mkdir()
    Path("taken/of.html").symlink_to("nowhere")
    Path("folder").mkdir()
    before = snapshot(Path("."))
    done = run_command(["report", "quick", "--out", out])
    assert done.status == 2 and len(done.error_lines) == 1 and "exists" in done.err
    assert snapshot(Path(".")) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "RUN_DIR"),
        (["nowhere"], "is not there"),
        (["quick", "quick"], "every run once"),
        (["quick", "--level", "2"], "--level: expected"),
        (["quick", "--out", "no/folder.html"], "--out: expected a file to write"),
        (["quick", "--sideways"], "--sideways"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_command, quick, argv, said):
    before = snapshot(quick.parent)
    done = run_command(["report", *argv])
    assert done.status == 2 and len(done.error_lines) == 1 and said in done.err, done.err
    assert snapshot(quick.parent) == before


def test_a_missing_plotly_names_the_extra(run_command, quick, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run_command(["report", "quick"])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "plotly" in done.err and "dsrl_offpolicy[report]" in done.err and not Path("report.html").exists()


def test_curves_are_the_rows_along_every_axis(tmp_path):
    folder = write_stage2(tmp_path / "run", CURVE)
    sections = {section.title: section for section in draw(make_report([folder], 0.8))}
    success = next(chart for chart in sections["Evaluations"].charts if chart.id == "success")
    (line,) = [trace for trace in success.traces if trace["mode"] == "lines+markers"]
    # Evaluations at rows n = 0, 10, 20: 1000 (n + 1) gradient steps, 8 (400 + 100 (n + 1)) env steps, (n + 1) / 2
    # minutes
    assert line["y"] == [0.4, 0.7, 0.95]
    assert line["meta"]["x"] == {
        "env_steps": [4000, 12000, 20000], "gradient_steps": [1000, 11000, 21000], "minutes": [0.5, 5.5, 10.5],
    }  # fmt: skip
    assert success.axes == ["env_steps", "gradient_steps", "minutes"]
    titles = [chart.title for chart in sections["Stage 2"].charts]
    assert titles[:6] == ["td_error", "q_mean", "alpha", "entropy", "kl", "critic_loss"]
    assert {"utd_effective", "buffer_size"} <= {chart.title for chart in sections["Stage 2"].more}


def test_seeds_have_a_mean_with_a_band_along_every_axis(tmp_path):
    folders = [write_stage2(tmp_path / f"s{seed}", [8 + seed, 14, 19 - seed], seed=seed) for seed in (1, 2, 3)]
    (success, _) = draw(make_report(folders, 0.8))[0].charts
    mean = next(trace for trace in success.traces if "mean of 3 runs" in trace["name"] and trace["mode"] == "lines"
                and trace.get("fill") is None)  # fmt: skip
    assert list(mean["meta"]["x"]) == ["env_steps", "gradient_steps", "minutes"]
    # (9 + 10 + 11) / 60, 14 / 20, (18 + 17 + 16) / 60
    for axis in mean["meta"]["x"]:
        assert mean["meta"]["y"][axis] == pytest.approx([0.5, 0.7, 0.85])


def test_long_runs_are_thinned_to_their_end(tmp_path):
    folder = write_stage2(tmp_path / "run", CURVE)
    rows = [{"group": "train", "env_steps": step, "td_error": 1.0} for step in range(5 * MOST_POINTS + 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (section,) = draw(make_report([folder], 0.8))
    (trace,) = section.charts[0].traces
    assert MOST_POINTS / 2 < len(trace["y"]) <= MOST_POINTS + 1
    assert trace["meta"]["x"]["env_steps"][-1] == 5 * MOST_POINTS + 2


def test_a_report_of_rows_alone_has_no_script(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("[")
    done = run_command(["report", "broken"])
    assert done.status == 0, done.err
    page = Page(Path("report.html").read_text())
    assert "broken cannot be read whole" in re.sub(r"\s+", " ", page.text) and not page.scripts
