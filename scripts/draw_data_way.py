"""Draw docs/concepts/data.svg, the way of the data through a macro-step: python scripts/draw_data_way.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "dsrl", "svg.fonttype": "none"}
import matplotlib.pyplot as plt  # noqa: E402

WIDTH, HEIGHT = 1.9, 0.8
BOXES = [
    (0, 1, "environment\nH env steps"),
    (3, 1, "base policy (frozen)\nencode"),
    (6, 2.1, "latent policy\nlearned"),
    (9, 1, "base policy (frozen)\ndecode"),
    (3, -1.2, "replay, inverted\ndemonstrations"),
    (6, -1.2, "learner\nQ^W, actor, alpha"),
]
"""Left, bottom, text."""
ARROWS = [
    ([(1.9, 1.4), (3, 1.4)], (2.45, 1.5), "observation s"),
    ([(4.9, 1.4), (9, 1.4)], (7.95, 1.5), "features, context"),
    ([(4.4, 1.8), (4.4, 2.5), (6, 2.5)], (5.2, 2.6), "features"),
    ([(7.9, 2.5), (9.5, 2.5), (9.5, 1.8)], (8.7, 2.6), "noise w"),
    ([(10.4, 1.8), (10.4, 3.4), (0.95, 3.4), (0.95, 1.8)], (5.5, 3.5), "chunk: the first H of T actions"),
    ([(0.95, 1), (0.95, -0.8), (3, -0.8)], (1.95, -0.7), "rewards, end"),
    ([(3.95, 1), (3.95, -0.4)], (4.6, 0.3), "features, w"),
    ([(4.9, -0.8), (6, -0.8)], (5.45, -0.7), "batches"),
    ([(6.95, -0.4), (6.95, 2.1)], (7.35, 0.3), "weights"),
]
"""Corners, where its text stands, and the text."""


def main() -> None:
    """Draw and save."""
    figure, axes = plt.subplots(figsize=(10, 4.4))
    for x, y, text in BOXES:
        axes.add_patch(plt.Rectangle((x, y), WIDTH, HEIGHT, facecolor="#e8eaf6", edgecolor="#3f51b5"))
        axes.text(x + WIDTH / 2, y + HEIGHT / 2, text, ha="center", va="center", fontsize=9, color="#1a1a2e")
    for corners, place, text in ARROWS:
        axes.plot(*zip(*corners, strict=True), color="#777777", linewidth=1)
        axes.annotate(
            "", corners[-1], corners[-2], arrowprops={"arrowstyle": "-|>", "color": "#777777", "shrinkB": 0}
        )
        axes.text(*place, text, ha="center", fontsize=8, color="#777777")
    axes.set_xlim(-0.1, 11)
    axes.set_ylim(-1.3, 3.8)
    axes.axis("off")
    path = Path(__file__).resolve().parents[1] / "docs" / "concepts" / "data.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None}, transparent=True)


if __name__ == "__main__":
    main()
