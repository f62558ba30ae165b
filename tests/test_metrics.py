"""The metrics against scikit-learn, pytorch-metric-learning, and their definitions written as plain loops."""

import itertools
import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from facekit import metrics
from facekit.files import InputError

QUICK = settings(max_examples=50, deadline=None)
PAIR = st.tuples(st.integers(0, 6), st.booleans(), st.integers(1, 3))  # few different scores: many ties


@st.composite
def tied_pairs(draw):
    """Scores (P,), same (P,) with both kinds present, and weights (P,)."""
    pairs = draw(st.lists(PAIR, max_size=25))
    pairs += [(draw(st.integers(0, 6)), True, 1), (draw(st.integers(0, 6)), False, 2)]
    scores, same, weights = (np.array(column) for column in zip(*pairs))
    return scores / 7, same, weights


def normal_pairs(count: int = 400, distance: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    same = np.arange(count) % 2 == 0
    return np.random.default_rng(0).normal(size=count) + distance * same, same


def all_thresholds(scores: np.ndarray) -> np.ndarray:
    """One threshold at each score, one between each two, one outside at each end."""
    values = np.unique(scores)
    return np.concatenate([[values[0] - 1], values, (values[:-1] + values[1:]) / 2, [values[-1] + 1]])


# ---- verification ----------------------------------------------------------------------------------------


@QUICK
@given(tied_pairs())
def test_roc_curve_and_area_are_those_of_scikit_learn(pairs):
    scores, same, weights = pairs
    for given_weights in (None, weights):
        expected = sklearn.metrics.roc_curve(
            same, scores, sample_weight=given_weights, drop_intermediate=False
        )
        for ours, theirs in zip(metrics.roc_curve(scores, same, given_weights), expected):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
        area = sklearn.metrics.roc_auc_score(same, scores, sample_weight=given_weights)
        assert metrics.roc_auc(scores, same, given_weights) == pytest.approx(area)


@QUICK
@given(tied_pairs())
def test_a_weight_counts_a_pair_that_often(pairs):
    scores, same, weights = pairs
    repeated = np.repeat(scores, weights), np.repeat(same, weights)
    for metric, argument in (
        (metrics.equal_error_rate, ()),
        (metrics.tar_at_far, (0.3,)),
        (metrics.balanced_accuracy, (0.4,)),
    ):
        assert metric(scores, same, *argument, weights=weights) == pytest.approx(metric(*repeated, *argument))


@QUICK
@given(tied_pairs(), st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.99]))
def test_tar_and_threshold_at_far_by_trying_every_threshold(pairs, far):
    scores, same, _ = pairs
    allowed = [t for t in all_thresholds(scores) if np.mean(scores[~same] >= t) <= far]
    assert metrics.tar_at_far(scores, same, far) == max(np.mean(scores[same] >= t) for t in allowed)

    threshold = metrics.threshold_at_far(scores, same, far)
    assert np.mean(scores[~same] >= threshold) <= far
    assert threshold <= min(allowed)
    assert np.mean(scores[~same] >= np.nextafter(threshold, -np.inf)) > far  # no lower one will do


def test_threshold_at_far_keeps_the_precision_of_the_scores():
    scores = np.array([0.1, 0.7, 0.7, 0.9], dtype=np.float32)
    same = np.array([False, False, False, True])
    threshold = metrics.threshold_at_far(scores, same, 0.4)
    assert (scores >= threshold).tolist() == [False, False, False, True]
    assert (torch.from_numpy(scores) >= threshold).tolist() == [False, False, False, True]


def test_threshold_at_far_needs_different_person_pairs_only():
    different = np.zeros(4, dtype=bool)
    threshold = metrics.threshold_at_far(np.array([0.1, 0.4, 0.3, 0.2]), different, 0.25)
    assert 0.3 < threshold <= 0.4
    for scores, same in ((np.array([0.1, np.nan, 0.3, 0.2]), different), (np.zeros(4), ~different)):
        with pytest.raises(ValueError, match="Different-person pairs"):
            metrics.threshold_at_far(scores, same, 0.25)


@pytest.mark.parametrize("count", [100, 290, 300, 700, 3000])
@pytest.mark.parametrize("far", [0.01, 0.07, 0.1, 0.29])
def test_far_that_is_exactly_reached_is_allowed(count, far):
    scores = np.arange(count + 1) / count
    same = np.arange(count + 1) == count
    threshold = metrics.threshold_at_far(scores, same, far)
    assert np.sum(scores[~same] >= threshold) == np.sum(np.arange(1, count + 1) / count <= far)


@QUICK
@given(tied_pairs())
def test_equal_error_rate_lies_where_the_error_curves_cross(pairs):
    scores, same, _ = pairs
    thresholds = [np.inf, *np.unique(scores)[::-1]]
    curve = [(np.mean(scores[~same] >= t), np.mean(scores[same] < t)) for t in thresholds]
    for (far, frr), (next_far, next_frr) in itertools.pairwise(curve):
        if far <= frr and next_far >= next_frr:  # solve far + k * step = frr + k * other step
            k = (frr - far) / ((next_far - far) - (next_frr - frr))
            assert metrics.equal_error_rate(scores, same) == pytest.approx(far + k * (next_far - far))
            return
    pytest.fail("the curves do not cross")


def test_equal_scores_tell_nothing():
    scores, same = np.full(10, 0.3), np.arange(10) < 4
    assert metrics.roc_auc(scores, same) == 0.5
    assert metrics.equal_error_rate(scores, same) == 0.5
    assert metrics.tar_at_far(scores, same, 0.5) == 0.0
    assert not np.any(scores >= metrics.threshold_at_far(scores, same, 0.5))


def test_perfect_separation():
    scores = np.concatenate([np.linspace(0.0, 0.2, 10), np.linspace(0.8, 1.0, 10)])
    same = np.arange(20) >= 10
    assert metrics.roc_auc(scores, same) == 1.0
    assert metrics.equal_error_rate(scores, same) == 0.0
    assert metrics.tar_at_far(scores, same, 0.0) == 1.0
    assert metrics.balanced_accuracy(scores, same) == 1.0
    assert metrics.best_threshold(scores, same) == pytest.approx(0.5)
    assert metrics.ten_fold_accuracy(scores, same, np.arange(20) % 2)[:2] == (1.0, 0.0)
    assert metrics.roc_auc(-scores, same) == 0.0
    assert metrics.equal_error_rate(-scores, same) == 1.0


def test_balanced_accuracy_is_that_of_scikit_learn():
    scores, same = normal_pairs()
    same[:100] = False
    expected = sklearn.metrics.balanced_accuracy_score(same, scores >= 0.7)
    assert metrics.balanced_accuracy(scores, same, 0.7) == pytest.approx(expected)


@QUICK
@given(tied_pairs())
def test_best_threshold_by_trying_every_threshold(pairs):
    scores, same, _ = pairs
    best = max(np.mean((scores >= t) == same) for t in all_thresholds(scores))
    assert np.mean((scores >= metrics.best_threshold(scores, same)) == same) == best


def test_best_threshold_between_neighbouring_numbers():
    for low in (0.1, 0.3, 1.0):
        scores = np.array([low, np.nextafter(low, 1e9)])
        same = np.array([False, True])
        assert np.array_equal(scores >= metrics.best_threshold(scores, same), same)


def test_ten_fold_accuracy_uses_the_threshold_of_the_other_folds():
    # In fold 0 every score is one higher, so that each fold's own best threshold is wrong for the other.
    scores = np.array([0.0, 0.2, 1.0, 1.2, 1.0, 1.2, 2.0, 2.2])
    same = np.array([False, False, True, True] * 2)
    folds = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    mean, standard_error, per_fold = metrics.ten_fold_accuracy(scores, same, folds)
    assert per_fold.tolist() == [0.5, 0.5]
    assert (mean, standard_error) == (0.5, 0.0)


def test_ten_fold_accuracy_against_a_plain_loop():
    scores, same = normal_pairs()
    folds = np.arange(400) // 40
    accuracies = []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        middles = [-np.inf, *((a + b) / 2 for a, b in itertools.pairwise(np.unique(scores[train]))), np.inf]
        best = max(middles, key=lambda t: np.sum((scores[train] >= t) == same[train]))
        accuracies.append(np.mean((scores[test] >= best) == same[test]))
    mean, standard_error, per_fold = metrics.ten_fold_accuracy(scores, same, folds)
    np.testing.assert_allclose(per_fold, accuracies)
    assert mean == pytest.approx(np.mean(accuracies))
    assert standard_error == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(10))


def test_a_single_fold_has_no_others():
    scores, same = normal_pairs()
    with pytest.raises(ValueError, match="two folds"):
        metrics.ten_fold_accuracy(scores, same, np.zeros(400, dtype=int))


@pytest.mark.parametrize(
    "metric",
    [
        metrics.roc_curve,
        metrics.roc_auc,
        metrics.equal_error_rate,
        lambda scores, same: metrics.tar_at_far(scores, same, 0.1),
        metrics.balanced_accuracy,
        metrics.best_threshold,
        lambda scores, same: metrics.ten_fold_accuracy(scores, same, np.arange(len(scores)) % 2),
    ],
)
def test_pairs_that_cannot_be_scored_raise(metric):
    same = np.array([True, False, True, False])
    with pytest.raises(ValueError, match="finite"):
        metric(np.array([0.1, np.nan, 0.2, 0.3]), same)
    with pytest.raises(ValueError, match="Both"):
        metric(np.arange(4.0), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="length"):
        metric(np.arange(5.0), same)


# ---- retrieval -------------------------------------------------------------------------------------------


def random_faces(images: int = 300, people: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 8) around a centre for each person; some people have one image, some many."""
    rng = np.random.default_rng(1)
    person = np.minimum(rng.geometric(0.04, images), people)
    centres = rng.normal(size=(people + 1, 8))
    return (centres[person] + 0.8 * rng.normal(size=(images, 8))).astype(np.float32), person


def test_retrieval_is_that_of_pytorch_metric_learning():
    embeddings, people = random_faces()
    assert 1 in np.unique(people, return_counts=True)[1]  # people with one image are there
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False, p=2, power=2)),
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(people))
    per_query = metrics.retrieval_per_query(embeddings, people, block=64)
    measured = {name: values.mean() for name, values in per_query.items() if name != "people"}
    assert measured["recall_at_1"] == pytest.approx(expected["precision_at_1"])
    assert measured["r_precision"] == pytest.approx(expected["r_precision"])
    assert measured["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"])
    assert 0.1 < measured["map_at_r"] < 0.9


def plain_retrieval(embeddings: np.ndarray, people: np.ndarray) -> list[tuple[float, float, float]]:
    """The definitions as loops: ranking by distance, then other people first, then precision at each hit."""
    result = []
    for query, person in enumerate(people):
        others = [i for i in range(len(people)) if i != query]
        others.sort(key=lambda i: (np.sum((embeddings[query] - embeddings[i]) ** 2), people[i] == person))
        hits = [people[i] == person for i in others]
        relevant = sum(hits)
        if relevant:
            precisions = [np.mean(hits[: k + 1]) for k in range(relevant) if hits[k]]
            result.append((float(hits[0]), np.mean(hits[:relevant]), sum(precisions) / relevant))
    return result


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3), st.integers(-3, 3)), max_size=25),
    st.integers(1, 7),
)
def test_retrieval_with_ties_against_a_plain_loop(images, block):
    images = np.array(images + [(0, 0, 0), (0, 1, 0), (1, 0, 1)])
    people, embeddings = images[:, 0], images[:, 1:]
    measured = metrics.retrieval_per_query(embeddings, people, block)
    columns = [measured[name] for name in ("recall_at_1", "r_precision", "map_at_r")]
    np.testing.assert_allclose(np.stack(columns, axis=1), plain_retrieval(embeddings, people))
    counts = {person: np.sum(people == person) for person in people}
    assert measured["people"].tolist() == [person for person in people if counts[person] > 1]


def test_equal_embeddings_are_no_success():
    people = np.repeat(["ann", "bob", "cid"], 4)
    embeddings = np.ones((12, 3))
    measured = metrics.retrieval_per_query(embeddings, people)
    assert not any(measured[name].any() for name in ("recall_at_1", "r_precision", "map_at_r"))
    assert not metrics.one_of_eleven(embeddings, people, np.random.default_rng(0))[0].any()


def test_one_of_eleven_with_people_far_apart_and_mixed_up():
    people = np.array(["ann", "bob", "ann", "cid", "bob", "ann"])
    apart = np.unique(people, return_inverse=True)[1][:, None] * 10.0 + np.arange(6)[:, None] / 10
    correct, anchor_people = metrics.one_of_eleven(apart, people, np.random.default_rng(0))
    assert correct.all()
    assert sorted(anchor_people) == ["ann", "ann", "ann", "bob", "bob"]  # cid has one image
    # Ann's images lie further from each other than any image of others does from them.
    mixed = np.array([[0.0], [1.0], [100.0], [0.5], [1.0], [-100.0]])
    correct, anchor_people = metrics.one_of_eleven(mixed, people, np.random.default_rng(0))
    assert not correct[anchor_people == "ann"].any()


def test_one_of_eleven_has_the_expected_share():
    # One positive, two others: at 1 and at 3, positive at 2. Correct when all ten draws are the far one.
    people = np.array([0] * 2 + [1, 2])
    embeddings = np.array([[0.0], [2.0], [-1.0], [-3.0]])
    rng = np.random.default_rng(0)
    for negatives in (1, 2):
        drawn = np.array([metrics.one_of_eleven(embeddings, people, rng, negatives)[0] for _ in range(1000)])
        assert drawn[:, 0].mean() == pytest.approx(0.5**negatives, abs=0.06)
        assert drawn[:, 1].all()


def test_one_of_eleven_draws_every_positive_but_never_the_anchor():
    people = np.array([0, 0, 0, 1])
    embeddings = np.array([[0.0], [1.0], [5.0], [2.0]])  # from image 0, image 1 is right and image 2 is wrong
    rng = np.random.default_rng(0)
    drawn = np.array([metrics.one_of_eleven(embeddings, people, rng)[0] for _ in range(1000)])
    # Image 1: its positives are at distances 1 and 4, the negative at 1 (a tie is wrong). Image 2: 4, 5; 3.
    np.testing.assert_allclose(drawn.mean(axis=0), [0.5, 0.0, 0.0], atol=0.06)


@pytest.mark.parametrize("function", [metrics.retrieval_per_query, metrics.one_of_eleven])
def test_embeddings_that_cannot_be_searched_raise(function):
    arguments = () if function is metrics.retrieval_per_query else (np.random.default_rng(0),)
    with pytest.raises(ValueError, match="finite"):
        function(np.array([[0.0], [np.nan], [1.0]]), np.array([0, 0, 1]), *arguments)
    for people in ([0, 0, 0], [0, 1, 2]):  # nobody else; nobody twice
        with pytest.raises(ValueError, match="Two people"):
            function(np.zeros((3, 2)), np.array(people), *arguments)
    with pytest.raises(ValueError, match="must be"):
        function(np.zeros((3, 2)), np.array([0, 0]), *arguments)


# ---- pairs -----------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 5))
def test_sampled_pairs_are_balanced_different_and_rightly_labelled(people, per_person):
    people = np.array([0, 0, 1] + people)
    first, second, same = metrics.sample_pairs(people, np.random.default_rng(0), per_person)
    assert np.sum(same) == np.sum(~same) > 0
    assert np.array_equal(people[first] == people[second], same)
    assert not np.any(first == second)
    assert len({frozenset(pair) for pair in zip(first, second)}) == len(first)
    assert np.bincount(people[first[same]]).max() <= per_person


def test_sampled_pairs_spread_over_people_and_repeat_with_the_seed():
    people = np.append(np.zeros(500, dtype=int), np.repeat(np.arange(1, 101), 3))
    first, second, same = metrics.sample_pairs(people, np.random.default_rng(0), per_person=3)
    assert np.sum(same) == 303  # three of each person, also of the one with 500 images
    with_the_many = np.mean((people[first[~same]] == 0) | (people[second[~same]] == 0))
    assert with_the_many < 0.1
    again = metrics.sample_pairs(people, np.random.default_rng(0), per_person=3)
    assert np.array_equal(again[0], first) and np.array_equal(again[1], second)


def test_sampled_pairs_favour_no_part_of_the_images():
    people = np.repeat(np.arange(30), 3)
    draws = [metrics.sample_pairs(people, np.random.default_rng(seed)) for seed in range(20)]
    both_in_upper_half = np.mean(
        [(first[~same] >= 45) & (second[~same] >= 45) for first, second, same in draws]
    )
    assert both_in_upper_half == pytest.approx(0.25, abs=0.04)  # 1800 pairs: four standard errors


@pytest.mark.parametrize("people", [[], [0, 0, 0], [0, 1, 2]])
def test_no_pairs_to_sample_raises(people):
    with pytest.raises(ValueError, match="Two people"):
        metrics.sample_pairs(np.array(people), np.random.default_rng(0))


def pairs_file(tmp_path, text: str):
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


def official_pairs(folds: int, count: int) -> list[str]:
    """In each fold first the pairs of one person, s_<fold>, then those of two, d_<fold> and other."""
    lines = []
    for fold in range(folds):
        lines += [f"s_{fold}\t{n}\t{n + 1}" for n in range(1, count + 1)]
        lines += [f"d_{fold}\t{n}\tother\t{n + 1}" for n in range(1, count + 1)]
    return lines


@pytest.mark.parametrize("header", ["10\t30", "10 30", "300", None])
def test_lfw_pairs_have_the_official_folds_with_or_without_header(tmp_path, header):
    lines = ([header] if header else []) + official_pairs(folds=10, count=30)
    pairs = metrics.read_lfw_pairs(pairs_file(tmp_path, "\n".join(lines) + "\n"))
    assert len(pairs) == 600
    assert pairs[0] == ("s_0", 1, "s_0", 2, True, 0)
    assert pairs[-1] == ("d_9", 30, "other", 31, False, 9)
    assert all(fold == int(name.split("_")[1]) for name, _, _, _, _, fold in pairs)
    assert all(same == name.startswith("s") for name, _, _, _, same, _ in pairs)


def test_lfw_pairs_that_were_thinned_out_have_even_folds(tmp_path):
    lines = official_pairs(folds=10, count=30)[::7]
    folds = np.array([fold for *_, fold in metrics.read_lfw_pairs(pairs_file(tmp_path, "\n".join(lines)))])
    sizes = np.bincount(folds)
    assert len(sizes) == 10 and sizes.max() - sizes.min() <= 2


def test_lfw_pairs_with_blanks(tmp_path):
    text = "\ufeffAnn_Lee 1 2\n\nAnn_Lee 3 Bo 4\nAnn Lee\t1\tBo\t002\n"
    pairs = metrics.read_lfw_pairs(pairs_file(tmp_path, text))
    assert [pair[:5] for pair in pairs] == [
        ("Ann_Lee", 1, "Ann_Lee", 2, True),
        ("Ann_Lee", 3, "Bo", 4, False),
        ("Ann Lee", 1, "Bo", 2, False),
    ]


@pytest.mark.parametrize(
    "line", ["Ann 1", "Ann 1 two", "Ann 1 Bo", "Ann 1 Bo 2 3", "Ann -1 2", "A\t\t1", "7 8"]
)
def test_a_bad_line_of_lfw_pairs_is_named(tmp_path, line):
    path = pairs_file(tmp_path, f"1 1\nAnn 1 2\n{line}\nAnn 1 Bo 2\n")
    with pytest.raises(InputError, match=r"pairs\.txt, line 3: "):
        metrics.read_lfw_pairs(path)


def test_lfw_pairs_that_are_no_pairs(tmp_path):
    with pytest.raises(InputError, match="missing"):
        metrics.read_lfw_pairs(tmp_path / "pairs.txt")
    for text in ("", "10 300\n", "Ann 1 2\n", "Ann 1 Bo 2\n", "0 5\nAnn 1 2\nAnn 1 Bo 2\n"):
        with pytest.raises(InputError, match=r"pairs\.txt must hold"):
            metrics.read_lfw_pairs(pairs_file(tmp_path, text))
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="cannot be read as text"):
        metrics.read_lfw_pairs(tmp_path / "pairs.txt")


# ---- intervals -------------------------------------------------------------------------------------------


def test_people_interval_is_as_wide_as_people_differ_however_many_images_they_have():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    low, high = metrics.people_interval(values, np.arange(200), rng=np.random.default_rng(1), samples=4000)
    standard_error = values.std() / np.sqrt(200)
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.06)
    repeated = np.repeat(values, 9), np.repeat(np.arange(200), 9)
    again = metrics.people_interval(*repeated, rng=np.random.default_rng(1), samples=4000)
    assert again == pytest.approx((low, high))


def test_pair_weights_are_the_pairs_that_drawn_people_form():
    first, second = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 2, 1, 2])
    same = first == second
    for weights in metrics.resampled_pair_weights(first, second, same, np.random.default_rng(0), 50):
        a, b, c = weights[:3]
        assert a + b + c == 3  # as many people drawn as there are
        assert weights[3:].tolist() == [a * b, b * c]
        assert weights[:3].any() and weights[3:].any()


def report_of(count: int, people: int = 100, folds: int = 10) -> dict:
    scores, same = normal_pairs(count)
    first = np.random.default_rng(0).integers(0, people, count)
    second = np.where(same, first, (first + 1) % people)
    names = np.array([f"person {number}" for number in range(people)])
    fold, rng = np.arange(count) // 2 % folds, np.random.default_rng(0)
    return metrics.verification_report(scores, same, names[first], names[second], fold, rng, samples=100)


def test_report_holds_the_metrics_and_intervals_around_them():
    report = report_of(2000)
    scores, same = normal_pairs(2000)
    assert report["balanced_accuracy"] == metrics.balanced_accuracy(scores, same)
    assert report["accuracy"] == metrics.ten_fold_accuracy(scores, same, np.arange(2000) // 2 % 10)[0]
    assert report["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(same, scores))
    assert report["eer"] == metrics.equal_error_rate(scores, same)
    assert report["tar_at_far_0.01"] == metrics.tar_at_far(scores, same, 0.01)
    assert report["tar_at_far_0.001"] == metrics.tar_at_far(scores, same, 0.001)
    assert report["tar_at_far_0.0001"] is report["tar_at_far_0.0001_interval"] is None  # 1,000 pairs of two people
    for name in [name for name, value in report.items() if not (value is None or name.endswith("_interval"))]:
        low, high = report[f"{name}_interval"]
        assert low < report[name] < high
    low, high = report["accuracy_interval"]
    assert 0.02 < high - low < 0.12  # about 4 * sqrt(0.77 * 0.23 / 2000) = 0.04 if pairs were independent
    assert json.loads(json.dumps(report)) == report


def test_report_states_no_number_that_the_pairs_cannot_give():
    report = report_of(1998, folds=1)
    assert report["tar_at_far_0.01"] is not None
    for name in ("accuracy", "tar_at_far_0.001"):  # one fold; 999 different-person pairs
        assert report[name] is None and report[f"{name}_interval"] is None


def test_effective_dimensions_count_directions_that_vary():
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(32, 32)))[0]
    for used in (1, 6, 32):
        vectors = random.normal(size=(20_000, 32)) * (np.arange(32) < used) @ turn + 5
        assert metrics.effective_dimensions(vectors) == pytest.approx(used, rel=0.02)
    two = random.normal(size=(50_000, 2)) * (3, 1)  # variances 9 and 1
    assert metrics.effective_dimensions(two) == pytest.approx(10**2 / (81 + 1), rel=0.03)
