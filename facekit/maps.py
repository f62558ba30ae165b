"""Maps of faces: the embeddings of many people on a plane, as a PNG and as an interactive page."""

import base64
import html
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from facekit.charts import COLOURS
from facekit.files import InputError, write_text, written_whole
from facekit.images import picture_of

SHOWN_PEOPLE = 20  # with a look and a line in the legend each; more could not be told apart
MARKERS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up"}  # in Matplotlib: in Plotly
LOOKS = [(colour, marker) for marker, colour in product(MARKERS, COLOURS)]
OTHERS = ("#BBBBBB", "o")
LONGEST_LABEL = 30  # letters


# ---------------------------------------------------------------- projection


def tsne(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Neighbours stay neighbours, distances do not stay (van der Maaten and Hinton 2008); needs scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise InputError("t-SNE needs scikit-learn: `pip install scikit-learn`, or choose pca.") from None
    perplexity = min(30, (len(embeddings) - 1) / 3)  # the usual 30 neighbours, or what few photos allow
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings)


def pca(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """The two directions in which the embeddings differ most; nothing here is random."""
    centred = embeddings - embeddings.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2]  # largest variance first
    return centred @ directions[:2].T


PROJECTIONS = {"tsne": tsne, "pca": pca}


def project(embeddings: np.ndarray, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Embeddings (N, D) -> points on a plane (N, 2), by a method of PROJECTIONS.

    InputError with fewer than three photos, or embeddings that are not finite or all the same.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if len(embeddings) < 3:
        raise InputError(f"A map of {len(embeddings)} photos shows nothing: give at least 3.")
    if not np.isfinite(embeddings).all():
        raise InputError("The embeddings are not finite numbers: train the weights again.")
    if not np.ptp(embeddings, axis=0).any():
        raise InputError(f"All {len(embeddings)} photos have the same embedding: give different photos.")
    return PROJECTIONS[method](embeddings, seed)


# ---------------------------------------------------------------- pictures


def map_png(points: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draws points (N, 2) of the photos of the people `names` (N,) as a PNG.

    The people with most photos have a colour and a marker each, all others are grey.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    axes = figure.subplots()
    labels, dots = [], []
    for label, rows, (colour, marker) in _groups(names):
        dots.append(axes.scatter(*points[rows].T, s=28, c=colour, marker=marker, alpha=0.8, linewidths=0))
        labels.append(label)
    legend = axes.legend(dots, ["name"] * len(dots), loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for text, label in zip(legend.get_texts(), labels):  # set later: a name may begin with _ or have a $ in it
        text.set_parse_math(False)
        text.set_text(label)
    axes.set_title(_title(names), loc="left")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[:].set_color("#DDDDDD")
    with written_whole(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the font lacks: a box
        figure.savefig(temporary, format="png")


def map_page(
    points: np.ndarray, names: Sequence[str], thumbnails: np.ndarray, paths: Sequence[str | Path], path: str | Path
) -> None:
    """Writes one HTML page with everything in it: points (N, 2) to zoom into, each shows its photo under the cursor.

    thumbnails uint8 (N, C, H, W) with C 1 or 3; names and paths (N,) are shown as text, whatever is in them.
    InputError when Plotly is missing.
    """
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise InputError(f"{path} needs Plotly: pip install plotly.") from None
    photos = [
        [_displayable(name), _displayable(file), _jpeg_url(thumbnail)]
        for name, file, thumbnail in zip(names, paths, thumbnails)
    ]
    figure = go.Figure()
    for label, rows, (colour, marker) in _groups(names):
        figure.add_scatter(
            x=points[rows, 0],
            y=points[rows, 1],
            mode="markers",
            name=html.escape(label, quote=False),  # Plotly reads tags in it
            marker=dict(color=colour, symbol=MARKERS[marker], size=9, opacity=0.8),
            customdata=[photos[row] for row in rows],
            hoverinfo="none",  # PAGE shows the photo instead
        )
    axis = dict(showticklabels=False, zeroline=False, gridcolor="#EEEEEE")
    figure.update_layout(
        title=_title(names),
        template="plotly_white",
        hovermode="closest",
        dragmode="pan",
        showlegend=True,
        xaxis=axis,
        yaxis=dict(axis, scaleanchor="x"),
    )
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        post_script=SHOW_PHOTO,
        default_height="100vh",
        config=dict(scrollZoom=True, displaylogo=False, responsive=True, showSendToCloud=False),  # faces stay here
    )
    write_text(path, PAGE.replace("PLOT", plot))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Map of faces</title>
<style>
body { margin: 0; font-family: sans-serif; }
#photo { position: fixed; display: none; pointer-events: none; max-width: 240px; padding: 8px; z-index: 1;
         background: white; border: 1px solid #999; border-radius: 4px; box-shadow: 0 2px 8px #0004; }
#photo img { display: block; width: 128px; margin-bottom: 6px; }
#photo small { color: #666; overflow-wrap: anywhere; }
</style>
</head>
<body>
<div id="photo"><img alt=""><b></b><br><small></small></div>
PLOT
</body>
</html>
"""

# Runs when the plot is drawn; Plotly puts the plot's id in. Names become text, never markup.
SHOW_PHOTO = """
const plot = document.getElementById("{plot_id}");
const box = document.getElementById("photo");
plot.on("plotly_hover", ({points, event}) => {
    const [name, file, photo] = points[0].customdata;
    box.querySelector("img").src = photo;
    box.querySelector("b").textContent = name;
    box.querySelector("small").textContent = file;
    box.style.display = "block";
    const left = event.clientX + 16, top = event.clientY + 16;
    box.style.left = Math.max(0, Math.min(left, innerWidth - box.offsetWidth - 8)) + "px";
    box.style.top = Math.max(0, Math.min(top, innerHeight - box.offsetHeight - 8)) + "px";
});
plot.on("plotly_unhover", () => { box.style.display = "none"; });
"""


def _groups(names: Sequence[str]) -> list[tuple[str, np.ndarray, tuple[str, str]]]:
    """What is drawn alike: label, rows, (colour, marker). First all others in grey, so that they lie below."""
    photos = Counter(sorted(names))
    shown = [name for name, _ in photos.most_common(SHOWN_PEOPLE)]
    groups = []
    if others := len(photos) - len(shown):
        rows = np.flatnonzero([name not in shown for name in names])
        groups.append((f"{others} other people ({len(rows)} photos)", rows, OTHERS))
    for name, look in zip(shown, LOOKS):
        label = _displayable(name)
        label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        groups.append((label, np.flatnonzero([other == name for other in names]), look))
    return groups


def _title(names: Sequence[str]) -> str:
    return f"{len(names):,} photos of {len(set(names)):,} people"


def _displayable(text: str | Path) -> str:
    """File names may hold bytes that are no UTF-8; they become question marks."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _jpeg_url(picture: np.ndarray) -> str:
    """uint8 (C, H, W) with C 1 or 3 -> the picture inside an address."""
    buffer = io.BytesIO()
    picture_of(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
