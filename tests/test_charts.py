"""Each chart is a PNG of the expected size that shows something, and shows what it was given."""

import numpy as np
import pytest
from PIL import Image

from facekit import charts, metrics
from facekit.files import InputError


def drawn(path) -> np.ndarray:
    """The pixels (H, W, 3) of a chart, checked to be a PNG."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def pixels_of(picture: np.ndarray, colour: str) -> int:
    """How many pixels have a colour, given as #RRGGBB."""
    return int(np.sum(np.all(picture == tuple(bytes.fromhex(colour[1:])), axis=2)))


def pairs(count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    same = np.arange(count) % 2 == 0
    return np.random.default_rng(0).normal(size=count) + 2 * same, same


def history(epochs: int) -> list[dict[str, str]]:
    return [
        {
            "epoch": str(epoch),
            "train_loss": str(1 / (epoch + 1)),
            "train_accuracy": str(1 - 0.5 / (epoch + 1)),
            "validation_accuracy": str(0.9 - 0.5 / (epoch + 1)) if epoch % 2 == 0 else "",
            "seconds": "many",
        }
        for epoch in range(epochs)
    ]


@pytest.mark.parametrize("distance", [0, 1, 100])  # chance, some errors, perfect
def test_roc_chart(tmp_path, distance):
    scores, same = pairs()
    far, tar, _ = metrics.roc_curve(scores - 2 * same + distance * same, same)
    charts.roc_chart(far, tar, tmp_path / "roc.png", auc=0.9, eer=0.1)
    picture = drawn(tmp_path / "roc.png")
    assert picture.shape == (540, 840, 3)
    assert pixels_of(picture, charts.COLOURS[0]) > 500
    assert [path.name for path in tmp_path.iterdir()] == ["roc.png"]


def test_roc_chart_of_a_handful_of_pairs(tmp_path):
    far, tar, _ = metrics.roc_curve(np.array([0.1, 0.9]), np.array([False, True]))
    charts.roc_chart(far, tar, tmp_path / "roc.png", auc=1.0, eer=0.0)
    assert pixels_of(drawn(tmp_path / "roc.png"), charts.COLOURS[0]) > 500


def test_score_histogram_draws_both_kinds_and_each_threshold(tmp_path):
    scores, same = pairs()
    charts.score_histogram(scores, same, {}, tmp_path / "none.png")
    charts.score_histogram(
        scores, same, {"FAR 10 %": 1.3, "FAR 1 %": 2.3, "never": np.inf}, tmp_path / "two.png"
    )
    without, with_two = drawn(tmp_path / "none.png"), drawn(tmp_path / "two.png")
    assert without.shape == with_two.shape == (540, 840, 3)
    assert pixels_of(without, charts.COLOURS[0]) > 500
    assert pixels_of(without, charts.COLOURS[1]) > 500
    columns = np.flatnonzero(np.sum(np.any(without != with_two, axis=2), axis=0) > 150)
    assert len(columns) >= 2 and columns[-1] - columns[0] > 50  # two upright lines


def test_score_histogram_of_equal_scores_of_one_kind(tmp_path):
    charts.score_histogram(np.full(5, 0.5), np.ones(5, dtype=bool), {}, tmp_path / "scores.png")
    assert pixels_of(drawn(tmp_path / "scores.png"), charts.COLOURS[0]) > 500


@pytest.mark.parametrize("epochs", [1, 80])
def test_history_chart_finds_its_columns(tmp_path, epochs):
    charts.history_chart(history(epochs), tmp_path / "history.png")
    picture = drawn(tmp_path / "history.png")
    assert picture.shape == (540, 1320, 3)
    loss, accuracy = picture[:, :660], picture[:, 660:]
    assert pixels_of(loss, charts.COLOURS[0]) > 10 and pixels_of(loss, charts.COLOURS[1]) == 0
    assert pixels_of(accuracy, charts.COLOURS[0]) > 10 and pixels_of(accuracy, charts.COLOURS[1]) > 10


def test_history_chart_without_accuracy_is_one_panel(tmp_path):
    charts.history_chart([{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}], tmp_path / "history.png")
    picture = drawn(tmp_path / "history.png")
    assert picture.shape == (540, 720, 3)
    assert pixels_of(picture, charts.COLOURS[0]) > 100


@pytest.mark.parametrize("rows", [[], [{"loss": 1.0}], [{"epoch": 1, "seconds": 3}]])
def test_history_that_cannot_be_drawn_leaves_the_old_chart(tmp_path, rows):
    path = tmp_path / "history.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"history\.png"):
        charts.history_chart(rows, path)
    assert path.read_bytes() == b"old"


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures of the charts that the test makes, before they are pixels; none of them is written."""
    made = []
    monkeypatch.setattr(charts, "_save", lambda figure, path: made.append(figure))
    return made


def test_cumulative_error_chart_shows_shares_of_faces(tmp_path, figures):
    nme = np.array([0.12, 0.01, np.nan, 0.03, 0.30, 0.04])
    charts.cumulative_error_chart(nme, tmp_path / "errors.png", failure=0.10)
    [axes] = figures[0].axes
    curve, line = axes.lines
    errors, shares = curve.get_data()
    for error, share in [(0.009, 0.0), (0.01, 0.2), (0.035, 0.4), (0.04, 0.6), (0.11, 0.6), (0.12, 0.8)]:
        below = errors <= error
        assert (shares[below][-1] if below.any() else 0) == pytest.approx(share), error
    assert list(line.get_xdata()) == [0.10, 0.10]
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == ["mean 10.00%, median 4.00%", "failed: 40.0%"]
    assert axes.get_xlim() == (0, 0.20) and axes.get_ylim() == (0, 1)


def test_cumulative_error_chart_is_a_picture(tmp_path):
    charts.cumulative_error_chart(np.linspace(0.02, 0.15, 50), tmp_path / "errors.png", failure=0.10)
    picture = drawn(tmp_path / "errors.png")
    assert picture.shape == (540, 780, 3)
    assert pixels_of(picture, charts.COLOURS[0]) > 500 and pixels_of(picture, charts.COLOURS[1]) > 200
    assert [path.name for path in tmp_path.iterdir()] == ["errors.png"]


@pytest.mark.parametrize("nme", [[], [np.nan, np.nan]])
def test_cumulative_error_chart_of_no_face_leaves_the_old_one(tmp_path, nme):
    path = tmp_path / "errors.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"errors\.png"):
        charts.cumulative_error_chart(np.array(nme), path, failure=0.10)
    assert path.read_bytes() == b"old"
