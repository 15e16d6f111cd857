"""A confusion matrix as a picture. Needs the extra `plot`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WITH_NUMBERS = 25  # classes at most whose cells hold their counts


def draw_matrix(labels: Sequence[str], rows: Sequence[Sequence[int]]) -> Figure:
    """Return the picture: a row per class, a column per prediction, coloured by the fraction of the row."""
    counts = np.asarray(rows)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(3.2 + 0.42 * len(labels), 20.0)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="prediction", ylabel="label")
    texts = [label.replace("$", r"\$") for label in labels]  # no mathematical notation
    axes.set_xticks(range(len(labels)), texts, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), texts)
    if len(labels) <= WITH_NUMBERS:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="fraction of the row", shrink=0.8)
    return figure
