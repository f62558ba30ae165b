"""Maps of faces: neighbours stay neighbours, people can be told apart, and no name can do harm."""

import json
import re
import sys
import urllib.request
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from facekit import maps
from facekit.files import InputError

NASTY = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "_hidden", "王小明", "$\\mathless$",
         "A & B", "\udcff", "محمد", "line\nbreak", ""]  # fmt: skip


def people_apart(people: int = 4, photos: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 32) in well separated clusters, and whose they are (N,)."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(people, 32))
    owner = np.repeat(np.arange(people), photos)
    return centres[owner] + 0.05 * random.normal(size=(len(owner), 32)), owner


@pytest.mark.parametrize("method", sorted(maps.PROJECTIONS))
def test_people_who_are_apart_stay_apart(method):
    if method == "tsne":
        pytest.importorskip("sklearn")
    embeddings, owner = people_apart()
    points = maps.project(embeddings, method, seed=0)
    assert points.shape == (len(owner), 2)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (owner[distances.argmin(axis=1)] == owner).all()
    np.testing.assert_array_equal(points, maps.project(embeddings, method, seed=0))


def test_pca_agrees_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    embeddings = np.random.default_rng(1).normal(size=(50, 32)) * np.linspace(1, 3, 32) + 7
    expected = decomposition.PCA(2).fit_transform(embeddings)
    points = maps.project(embeddings, "pca", seed=0)
    np.testing.assert_allclose(points * np.sign(points[0] * expected[0]), expected, atol=1e-9)  # signs are free


@pytest.mark.parametrize("method", sorted(maps.PROJECTIONS))
@pytest.mark.parametrize("count", [3, 4, 10])
def test_few_photos(method, count):
    if method == "tsne":
        pytest.importorskip("sklearn")
    points = maps.project(people_apart()[0][:count].astype(np.float32), method, seed=1)
    assert points.shape == (count, 2) and np.isfinite(points).all()


@pytest.mark.parametrize("method", sorted(maps.PROJECTIONS))
def test_what_cannot_be_shown_is_said(method):
    with pytest.raises(InputError, match="at least 3"):
        maps.project(np.eye(2), method)
    with pytest.raises(InputError, match="same embedding"):
        maps.project(np.ones((5, 32)), method)
    with pytest.raises(InputError, match="not finite"):
        maps.project(np.full((5, 32), np.nan), method)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for module in ("sklearn.manifold", "plotly", "plotly.graph_objects"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        maps.project(np.eye(5), "tsne")
    assert maps.project(np.eye(5), "pca").shape == (5, 2)
    with pytest.raises(InputError, match="pip install plotly"):
        page(tmp_path, ["Ada"])


# ---------------------------------------------------------------- PNG


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def points_of(names: list[str]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(names), 2))


def test_png_gives_each_person_a_look(tmp_path):
    names = [f"Person {number}" for number in range(maps.SHOWN_PEOPLE)] * 2
    looks = [look for _, _, look in maps._groups(names)]
    assert len(set(looks)) == len(looks) == maps.SHOWN_PEOPLE
    maps.map_png(points_of(names), names, tmp_path / "map.png")
    colours, counts = np.unique(drawn(tmp_path / "map.png").reshape(-1, 3), axis=0, return_counts=True)
    vivid = colours.max(axis=1).astype(int) - colours.min(axis=1) > 80
    assert counts[vivid].sum() > 2000
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_people_beyond_the_legend_are_grey_and_counted():
    names = ["many"] * 3 + [f"Person {number:02}" for number in range(maps.SHOWN_PEOPLE + 4)]
    (label, rows, look), *shown = maps._groups(names)
    assert label == "5 other people (5 photos)" and look == maps.OTHERS
    assert shown[0][0] == "many" and len(shown) == maps.SHOWN_PEOPLE  # most photos first
    everyone = np.concatenate([rows] + [group[1] for group in shown])
    np.testing.assert_array_equal(np.sort(everyone), np.arange(len(names)))


def test_png_with_any_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps.map_png(points_of(NASTY), NASTY, tmp_path / "map.png")
    assert drawn(tmp_path / "map.png").shape == (840, 1200, 3)


def test_names_stand_in_the_legend_of_the_png(tmp_path):
    for name in ("_ne", "_en"):  # equally wide; Matplotlib leaves names with _ out by itself
        maps.map_png(points_of([name] * 3), [name] * 3, tmp_path / f"{name}.png")
    changed = (drawn(tmp_path / "_ne.png") != drawn(tmp_path / "_en.png")).any(axis=(0, 2))
    assert np.flatnonzero(changed).min() > 800  # beside the map


def test_long_names_are_cut():
    [(label, _, _)] = maps._groups(["x" * 500])
    assert label == "x" * 29 + "…"


# ---------------------------------------------------------------- page


class Elements(HTMLParser):
    """Counts the elements of a page and keeps its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.opened, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)

    def handle_data(self, data):
        if self.opened and self.opened[-1] == "script":
            self.scripts.append(data)


def page(tmp_path, names: list[str], channels: int = 1) -> str:
    thumbnails = np.stack([np.full((channels, 8, 8), 20 * number, np.uint8) for number in range(len(names))])
    maps.map_page(points_of(names), names, thumbnails, [f"folder/{name}.jpg" for name in names], tmp_path / "map.html")
    return (tmp_path / "map.html").read_text(encoding="utf-8")


@pytest.fixture
def small_plotly(monkeypatch):
    """Leaves Plotly's own 5 MB out, which are not ours to read."""
    pytest.importorskip("plotly")
    monkeypatch.setattr("plotly.io._html.get_plotlyjs", lambda: "")


def data_of(text: str) -> list[dict]:
    """The traces that the page gives to Plotly."""
    [call] = re.findall(r'Plotly\.newPlot\(\s*"[^"]*",\s*(\[.*?\}\]),\s*\{', text, re.DOTALL)
    return json.loads(call)


@pytest.mark.parametrize("channels", [1, 3])
def test_page_has_every_photo_with_name_and_file(tmp_path, small_plotly, channels):
    text = page(tmp_path, ["Ada", "Boris", "Ada"], channels)
    shown = [photo for trace in data_of(text) for photo in trace["customdata"]]
    assert [(name, file) for name, file, _ in shown] == [
        ("Ada", "folder/Ada.jpg"), ("Ada", "folder/Ada.jpg"), ("Boris", "folder/Boris.jpg")
    ]  # fmt: skip
    for (_, _, address), grey in zip(shown, [0, 40, 20]):
        with Image.open(urllib.request.urlopen(address)) as thumbnail:
            assert thumbnail.format == "JPEG" and thumbnail.size == (8, 8)
            np.testing.assert_allclose(np.asarray(thumbnail), grey, atol=2)
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]


def test_names_do_not_become_markup(tmp_path, small_plotly):
    harmless, nasty = page(tmp_path, [f"Person {number}" for number in range(len(NASTY))]), page(tmp_path, NASTY)
    assert Elements(nasty).opened == Elements(harmless).opened
    traces = data_of(nasty)
    assert not any("<" in trace["name"] for trace in traces)  # Plotly would read tags
    assert {photo[0] for trace in traces for photo in trace["customdata"]} == {
        name.replace("\udcff", "?") for name in NASTY
    }


def test_page_shows_the_photo_on_hover_and_sends_nothing(tmp_path, small_plotly):
    text = page(tmp_path, ["Ada", "Boris"])
    assert 'plot.on("plotly_hover"' in text and 'id="photo"' in text
    assert "innerHTML" not in "".join(Elements(text).scripts)
    assert re.search(r'"showSendToCloud":\s*false', text)  # Plotly's button for it is on by default
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
    assert addresses == []


def test_page_brings_plotly_with_it(tmp_path):
    pytest.importorskip("plotly")
    assert len(page(tmp_path, ["Ada"])) > 1_000_000
