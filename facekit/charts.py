"""Charts as PNG files, drawn without a window: of pairs, galleries, boxes, landmarks, and of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # matplotlib is loaded where a chart is drawn: it takes as long as naming the first photo
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from facekit.files import InputError, written_whole

# Colours that colour-blind people tell apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#666666"


def roc_chart(far: np.ndarray, tar: np.ndarray, path: str | Path, auc: float, eer: float) -> None:
    """Draws a ROC curve, `far` and `tar` (T,) as `metrics.roc_curve` gives them, over a logarithmic FAR axis.

    `auc` and `eer`, 0..1, stand in the legend. Marked is the TAR at each power of ten of the FAR that the
    pairs can tell apart from zero.
    """
    far, tar = np.asarray(far), np.asarray(tar)
    smallest = min(far[far > 0].min(), 0.1)
    figure, (axes,) = _figure(width=7, panels=1)
    axes.plot(
        far,
        tar,
        drawstyle="steps-post",
        color=COLOURS[0],
        label=f"AUC {auc:.4f}, EER {_percent(round(eer, 4))}",
    )
    diagonal = np.geomspace(smallest, 1, 100)
    axes.plot(diagonal, diagonal, color=GREY, linestyle=":", label="chance")
    for power in range(int(np.ceil(np.log10(smallest))), 0):
        accepted = tar[np.searchsorted(far, 10.0**power, side="right") - 1]
        axes.plot(10.0**power, accepted, "o", color=COLOURS[0])
        below = accepted > 0.1  # the text goes under the rising curve, unless the axis is there
        axes.annotate(
            _percent(round(accepted, 3)),
            (10.0**power, accepted),
            xytext=(6, -6 if below else 6),
            textcoords="offset points",
            ha="left" if below else "right",
            va="top" if below else "bottom",
        )
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel("different-person pairs accepted (FAR)")
    axes.set_ylabel("same-person pairs accepted (TAR)")
    _title_and_legend(axes, "Verification of pairs")
    _save(figure, path)


def score_histogram(
    scores: np.ndarray, same: np.ndarray, thresholds: Mapping[str, float], path: str | Path
) -> None:
    """Draws how the `scores` (P,) of same-person and of different-person pairs, `same` (P,), are distributed.

    `thresholds` maps the text at each vertical line to its score, such as {"FAR 1 %": 0.83}.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    figure, (axes,) = _figure(width=7, panels=1)
    edges = np.histogram_bin_edges(scores, bins=60)
    for kind, label, colour in ((~same, "different people", COLOURS[1]), (same, "same person", COLOURS[0])):
        shares = np.full(kind.sum(), 1 / max(kind.sum(), 1))
        text = f"{label} ({kind.sum():,} pairs)"
        axes.hist(scores[kind], edges, weights=shares, color=colour, alpha=0.35)
        axes.hist(
            scores[kind], edges, weights=shares, color=colour, histtype="step", linewidth=1.5, label=text
        )
    inside = {text: score for text, score in thresholds.items() if np.isfinite(score)}
    for text, score in inside.items():
        axes.axvline(score, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            text,
            (score, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=90,
            color=GREY,
        )
    axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel("score (higher: more alike)")
    axes.set_ylabel("share of the pairs of each kind")
    _title_and_legend(axes, "Scores of pairs")
    _save(figure, path)


def history_chart(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Draws the history of a training, one row an epoch, as `csv.DictReader` gives them or with numbers.

    The column `epoch` is the horizontal axis; columns with `loss` in their name go to one panel, those with
    `accuracy` (0..1) to another with the best validation accuracy marked, and so those with `nme` (landmarks) and
    `ap50` (detector). Others, and empty cells, are left out.
    """
    if not rows or "epoch" not in rows[0]:
        raise InputError(f"{path} cannot be drawn: the history has no rows with a column 'epoch'.")
    kinds = [kind for kind in ("loss", "accuracy", "nme", "ap50") if any(kind in name for name in rows[0])]
    if not kinds:
        raise InputError(f"{path} cannot be drawn: no column of the history is named loss, accuracy, nme or ap50.")
    figure, panels = _figure(width=5 * len(kinds) + 1, panels=len(kinds))
    for axes, kind in zip(panels, kinds):
        names = [name for name in rows[0] if kind in name]
        for name, colour in zip(names, cycle(COLOURS)):
            _history_line(axes, rows, name, colour)
        axes.set_title(kind)
        axes.set_xlabel("epoch")
        axes.locator_params("x", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        axes.legend()
        if kind == "accuracy":
            axes.yaxis.set_major_formatter(_percent)
    _save(figure, path)


def det_chart(probe_scores: np.ndarray, stranger_scores: np.ndarray, threshold: float, path: str | Path) -> None:
    """Strangers who get a name against probes who do not get theirs, over all thresholds (DET, logarithmic).

    probe_scores (P,) are of probes whose first candidate is right, -1 where it is not; stranger_scores (S,).
    """
    thresholds = np.unique(np.concatenate([probe_scores, stranger_scores, [threshold]]))
    probes, strangers = np.sort(probe_scores), np.sort(stranger_scores)
    missed = np.searchsorted(probes, thresholds) / max(1, len(probes))
    named = 1 - np.searchsorted(strangers, thresholds) / max(1, len(strangers))
    figure, [axes] = _figure(width=6.5, panels=1)
    axes.plot(named, missed, drawstyle="steps-post", color=COLOURS[0])
    at = np.searchsorted(thresholds, threshold)
    axes.plot(named[at], missed[at], "o", color=COLOURS[1],
              label=f"threshold {threshold:.3f}: {named[at]:.1%} of strangers named, {missed[at]:.1%} of probes missed")
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="strangers who get a name", ylabel="probes who do not get theirs")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    _title_and_legend(axes, "Identification in an open set")
    _save(figure, path)


def precision_recall_chart(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], threshold: float, path: str | Path
) -> None:
    """Draws the detector's curves, name -> precision (N,), recall (N,) and score (N,) of the boxes, best first.

    A dot marks the working threshold.
    """
    figure, [axes] = _figure(width=7, panels=1)
    for (name, (precision, recall, scores)), colour in zip(curves.items(), cycle(COLOURS)):
        axes.plot(recall, precision, color=colour, label=name)
        if kept := int((scores >= threshold).sum()):
            axes.plot(recall[kept - 1], precision[kept - 1], "o", color=colour)
    axes.plot([], [], "o", color=GREY, label=f"working score {threshold:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="faces found (recall)", ylabel="boxes that are faces (precision)")
    axes.legend(loc="lower left", frameon=False, fontsize="small")
    _save(figure, path)


def cumulative_error_chart(nme: np.ndarray, path: str | Path, failure: float) -> None:
    """Share of faces (N,) whose NME is at most so large: the landmark model's curve. NaN are left out."""
    errors = np.sort(nme[~np.isnan(nme)])
    if not len(errors):
        raise InputError(f"{path} cannot be drawn: there is no face with an error.")
    figure, [axes] = _figure(width=6.5, panels=1)
    axes.step(errors, np.arange(1, len(errors) + 1) / len(errors), where="post", color=COLOURS[0],
              label=f"mean {errors.mean():.2%}, median {np.median(errors):.2%}")  # fmt: skip
    axes.axvline(failure, color=COLOURS[1], linestyle="--", label=f"failed: {(errors > failure).mean():.1%}")
    axes.set(xlim=(0, 2 * failure), ylim=(0, 1), xlabel="NME: error divided by the distance between the eyes",
             ylabel="share of faces")  # fmt: skip
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    _title_and_legend(axes, "Landmarks")
    _save(figure, path)


def _history_line(axes: Axes, rows: Sequence[Mapping[str, object]], name: str, colour: str) -> None:
    """Draws one column of the history; the best of a validation accuracy gets a dot and its number."""
    filled = [row for row in rows if row.get(name) not in (None, "")]
    epochs = [float(row["epoch"]) for row in filled]
    values = [float(row[name]) for row in filled]
    label = name.replace("_", " ")
    if "accuracy" in name and "valid" in name and values:
        best = len(values) - 1 - int(np.argmax(values[::-1]))  # the last of equals, whose weights are kept
        label += f", best {_percent(round(values[best], 3))} (epoch {epochs[best]:g})"
        axes.plot(epochs[best], values[best], "o", color=colour)
    axes.plot(epochs, values, color=colour, marker="." if len(values) < 30 else None, label=label)


def _figure(width: float, panels: int) -> tuple[Figure, list[Axes]]:
    """An empty figure in the style of all charts, `width` inches wide, with its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.5), dpi=120, layout="constrained")
    axes_list = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in axes_list:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, axes_list


def _title_and_legend(axes: Axes, title: str) -> None:
    """Both above the panel, left and right, where no curve can be hidden."""
    axes.set_title(title, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize="small")


def _percent(share: float, _position: int | None = None) -> str:
    """A share 0..1 as text; also the form that matplotlib wants for the numbers along an axis."""
    return f"{100 * share:g} %"


def _save(figure: Figure, path: str | Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")
