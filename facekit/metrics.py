"""Verification (same person, yes or no) and retrieval (whose face is it) metrics, and their intervals.

Everything takes plain arrays. Of P pairs, `scores` (P,) is higher the more alike the two faces are, `same`
(P,) is True where they show the same person, and a pair is accepted when `score >= threshold`. FAR is the
share of different-person pairs that are accepted, TAR the share of same-person pairs. `weights` (P,), where a
function has it, says how often each pair counts; without it each counts once.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facekit.files import InputError

REPORTED_FARS = (0.01, 0.001, 0.0001)
TAILS = (0.025, 0.975)  # of a 95 % interval

# ---- verification ----------------------------------------------------------------------------------------


def roc_curve(
    scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FAR, TAR and threshold, each (T + 1,) for T different scores, strictest threshold first.

    The first point is (0, 0) at threshold infinity. Pairs with one score are accepted together.
    ValueError when a score is not finite, or when all pairs are of one kind.
    """
    scores, same = _checked_pairs(scores, same)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, same, weights = scores[order], same[order], weights[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    accepted_same = np.cumsum(weights * same)
    accepted_different = np.cumsum(weights * ~same)
    far = np.append(0.0, accepted_different[last_of_tie] / accepted_different[-1])
    tar = np.append(0.0, accepted_same[last_of_tie] / accepted_same[-1])
    return far, tar, np.append(np.inf, scores[last_of_tie])


def roc_auc(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, 0..1: how often a same-person pair scores above a different-person pair."""
    far, tar, _ = roc_curve(scores, same, weights)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def equal_error_rate(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The error rate, 0..1, where FAR and 1 - TAR cross; linear between the points of the ROC curve."""
    far, tar, _ = roc_curve(scores, same, weights)
    return float(np.interp(0.0, far - (1 - tar), far))


def tar_at_far(scores: np.ndarray, same: np.ndarray, far: float, weights: np.ndarray | None = None) -> float:
    """The largest TAR, 0..1, at a threshold whose FAR does not exceed `far`; nothing is interpolated."""
    fars, tars, _ = roc_curve(scores, same, weights)
    return float(tars[np.searchsorted(fars, far, side="right") - 1])


def threshold_at_far(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    """The lowest threshold at which at most the share `far` of the different-person pairs is accepted.

    It is the next number, in the precision of `scores`, above the highest score that must be rejected. It may
    lie above every score; it is minus infinity when `far` is 1 or more. Same-person pairs are not needed.
    ValueError when there is no different-person pair, or one whose score is not finite.
    """
    different = np.sort(np.asarray(scores)[~np.asarray(same, dtype=bool)])[::-1]
    if not len(different) or not np.isfinite(different).all():
        raise ValueError("Different-person pairs are needed, with scores that are finite numbers.")
    shares = np.arange(len(different) + 1) / len(different)
    accepted = np.searchsorted(shares, far, side="right") - 1
    return float(np.nextafter(different[accepted], np.inf)) if accepted < len(different) else -np.inf


def balanced_accuracy(
    scores: np.ndarray, same: np.ndarray, threshold: float = 0.5, weights: np.ndarray | None = None
) -> float:
    """Mean of the shares of same-person pairs accepted and of different-person pairs rejected, 0..1."""
    scores, same = _checked_pairs(scores, same)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights)
    correct = (scores >= threshold) == same
    accuracies = [np.average(correct[kind], weights=weights[kind]) for kind in (same, ~same)]
    return float(np.mean(accuracies))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the most correct pairs; the lowest when several are equally good.

    Tried are the midpoints between neighbouring scores, and minus and plus infinity (accept all, reject all).
    """
    scores, same = _checked_pairs(scores, same)
    values, position = np.unique(scores, return_inverse=True)
    same_counts = np.bincount(position, weights=same)
    different_counts = np.bincount(position, weights=~same)
    rejected_different = np.append(0, np.cumsum(different_counts))
    accepted_same = np.append(np.cumsum(same_counts[::-1])[::-1], 0)
    middle = values[:-1] / 2 + values[1:] / 2
    # Between two neighbouring floating-point numbers there is no middle: it rounds to either of them.
    middle = np.where(middle > values[:-1], middle, values[1:])
    thresholds = np.concatenate([[-np.inf], middle, [np.inf]])
    return float(thresholds[np.argmax(rejected_different + accepted_same)])


def ten_fold_decisions(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(P,) True where a pair is decided correctly at the threshold that is best on the other folds' pairs.

    `folds` (P,) numbers the fold of each pair. ValueError when there is only one fold.
    """
    scores, same = _checked_pairs(scores, same)
    folds = np.asarray(folds)
    if len(np.unique(folds)) < 2:
        raise ValueError("Choosing the threshold on the other folds needs at least two folds.")
    correct = np.zeros(len(scores), dtype=bool)
    for fold in np.unique(folds):
        inside = folds == fold
        threshold = best_threshold(scores[~inside], same[~inside])
        correct[inside] = (scores[inside] >= threshold) == same[inside]
    return correct


def ten_fold_accuracy(
    scores: np.ndarray, same: np.ndarray, folds: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """Mean accuracy over the folds, its standard error, and the accuracy of each fold (F,), all 0..1.

    The protocol of Labeled Faces in the Wild (Huang et al. 2007): each fold is decided at the threshold that
    is best on the others. See `ten_fold_decisions`.
    """
    correct = ten_fold_decisions(scores, same, folds)
    per_fold = np.array([correct[folds == fold].mean() for fold in np.unique(folds)])
    standard_error = per_fold.std(ddof=1) / np.sqrt(len(per_fold))
    return float(per_fold.mean()), float(standard_error), per_fold


def _checked_pairs(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"Scores {scores.shape} and same {same.shape} must be two lists of one length.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are not finite numbers.")
    if same.all() or not same.any():
        raise ValueError("Both same-person and different-person pairs are needed.")
    return scores, same


# ---- retrieval -------------------------------------------------------------------------------------------


def retrieval_per_query(
    embeddings: np.ndarray, people: np.ndarray, block: int = 256
) -> dict[str, np.ndarray]:
    """Searches for each image among all others; `embeddings` is (N, D), `people` (N,) says whose image it is.

    Every image of a person with R + 1 >= 2 images is a query; people with one image are there to be confused
    with. Others are ranked by squared Euclidean distance; at equal distance, other people come first. Returns
    for Q queries, each (Q,): `recall_at_1` (the nearest is the same person), `r_precision` (the share of that
    person in the R nearest), `map_at_r` (precision at each hit among the R nearest, summed, over R), and the
    query's `people`. Musgrave et al. 2020, "A Metric Learning Reality Check". `block` queries are compared at
    a time: 8 * block * N bytes.
    """
    embeddings, people, members = _checked_embeddings(embeddings, people)
    queries = np.flatnonzero([len(members[person]) > 1 for person in people])
    scores = np.zeros((len(queries), 3))
    for start in range(0, len(queries), block):
        distances = _squared_distances(embeddings[queries[start : start + block]], embeddings)
        for row, query in enumerate(queries[start : start + block]):
            own = members[people[query]]
            positives = np.sort(distances[row, own[own != query]])  # (R,)
            distances[row, own] = np.inf
            negatives = np.sort(np.partition(distances[row], len(positives) - 1)[: len(positives)])  # (R,)
            scores[start + row] = _ranking_scores(positives, negatives)
    names = ("recall_at_1", "r_precision", "map_at_r")
    return dict(zip(names, scores.T)) | {"people": people[queries]}


def _ranking_scores(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float, float]:
    """Recall@1, R-Precision, MAP@R from the sorted distances of the R positives and R nearest negatives."""
    hits = np.arange(1, len(positives) + 1)
    ranks = hits + np.searchsorted(negatives, positives, side="right")
    found = ranks <= len(positives)
    return float(ranks[0] == 1), found.mean(), np.sum(hits[found] / ranks[found]) / len(positives)


def one_of_eleven(
    embeddings: np.ndarray, people: np.ndarray, rng: np.random.Generator, negatives: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Is a random image of the same person nearer than ten random images of other people?

    `embeddings` (N, D), `people` (N,). Each image of a person with at least two is once the anchor. Returns
    for A anchors whether the positive was strictly nearer (squared distance) than all negatives (A,), and the
    anchor's person (A,). Negatives are drawn with replacement.
    """
    embeddings, people, _ = _checked_embeddings(embeddings, people)
    order = np.argsort(people, kind="stable")  # now the images of a person stand together, from `first` on
    embeddings, people = embeddings[order], people[order]
    first = np.searchsorted(people, people, side="left")
    count = np.searchsorted(people, people, side="right") - first

    anchors = np.flatnonzero(count > 1)
    first, count = first[anchors], count[anchors]
    # One to count - 1 steps on from the anchor, round and round within its person: any image but itself.
    positives = first + (anchors - first + rng.integers(1, count)) % count
    positive_distance = np.sum((embeddings[anchors] - embeddings[positives]) ** 2, axis=1)
    correct = np.ones(len(anchors), dtype=bool)
    for _ in range(negatives):
        chosen = rng.integers(0, len(people) - count)
        chosen += np.where(chosen >= first, count, 0)  # steps over the anchor's own person
        correct &= positive_distance < np.sum((embeddings[anchors] - embeddings[chosen]) ** 2, axis=1)
    return correct, people[anchors]


def effective_dimensions(embeddings: np.ndarray) -> float:
    """How many dimensions the embeddings (N, D) really use: 1 on a line, D where all directions vary alike.

    The participation ratio (Σλ)² / Σλ² of the eigenvalues λ of their covariance (Gao et al. 2017). Training can leave
    it far below D, and what lies along the other directions is lost.
    """
    covariance = np.cov(np.asarray(embeddings, np.float64), rowvar=False)
    return float(np.trace(covariance) ** 2 / np.square(covariance).sum())


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of (B, D) to (N, D): (B, N)."""
    return np.sum(rows**2, axis=1)[:, None] - 2 * rows @ columns.T + np.sum(columns**2, axis=1)


def _checked_embeddings(
    embeddings: np.ndarray, people: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[object, np.ndarray]]:
    """The arrays, and the image numbers of each person. Float64, so that near-equal distances rank right."""
    embeddings, people = np.asarray(embeddings, dtype=np.float64), np.asarray(people)
    if embeddings.ndim != 2 or people.shape != embeddings.shape[:1]:
        raise ValueError(f"Embeddings {embeddings.shape} must be (N, D) and people {people.shape} (N,).")
    if not np.isfinite(embeddings).all():
        raise ValueError("Some embeddings are not finite numbers.")
    members = _members(people)
    if len(members) < 2 or len(members) == len(people):
        raise ValueError("Two people are needed at least, and two images of one of them.")
    return embeddings, people, members


def _members(people: np.ndarray) -> dict[object, np.ndarray]:
    """The image numbers of each person."""
    names, counts = np.unique(people, return_counts=True)
    return dict(zip(names, np.split(np.argsort(people, kind="stable"), np.cumsum(counts)[:-1])))


# ---- pairs -----------------------------------------------------------------------------------------------


def sample_pairs(
    people: np.ndarray, rng: np.random.Generator, per_person: int = 3,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws verification pairs among images, as many of one person as of two, none twice.

    `people` (N,) says whose image it is. Of a person come at most `per_person` same-person pairs, and two
    people for a different-person pair are drawn before their images, so that nobody with many images
    dominates. Returns image numbers `first` (P,) and `second` (P,), and `same` (P,); the same-person pairs
    stand first. ValueError when no pairs of either kind exist.
    """
    members = list(_members(np.asarray(people)).values())
    same_pairs = [_pairs_within(images, rng, per_person) for images in members if len(images) > 1]
    if not same_pairs or len(members) < 2:
        raise ValueError("Two people are needed at least, and two images of one of them.")
    same_pairs = rng.permutation(np.concatenate(same_pairs))
    possible = (len(people) ** 2 - sum(len(images) ** 2 for images in members)) // 2
    count = min(len(same_pairs), possible)
    pairs = np.concatenate([same_pairs[:count], _pairs_between(members, rng, count)])
    return pairs[:, 0], pairs[:, 1], np.repeat([True, False], count)


def _pairs_within(images: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """At most `count` different pairs of one person's images: (<= count, 2)."""
    pairs = np.stack(np.triu_indices(len(images), k=1), axis=1)
    chosen = rng.choice(len(pairs), size=min(count, len(pairs)), replace=False)
    return images[pairs[chosen]]


def _pairs_between(members: list[np.ndarray], rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` different pairs of images of different people, people drawn evenly: (count, 2)."""
    sizes = np.array([len(images) for images in members])
    images, starts = np.concatenate(members), np.cumsum(sizes) - sizes
    pairs = np.empty((0, 2), dtype=np.int64)
    while len(pairs) < count:
        first = rng.integers(0, len(members), size=count)
        second = (first + rng.integers(1, len(members), size=count)) % len(members)  # anybody else
        chosen = np.stack([first, second], axis=1)
        drawn = images[starts[chosen] + rng.integers(0, sizes[chosen])]
        pairs = np.unique(np.concatenate([pairs, np.sort(drawn, axis=1)]), axis=0)
    return rng.permutation(pairs)[:count]


def read_lfw_pairs(path: str | Path) -> list[tuple[str, int, str, int, bool, int]]:
    """Reads the pairs.txt of Labeled Faces in the Wild: (name, number, name, number, same person, fold) each.

    Lines are `name n m` (two images of a person) or `name n other m`, parted by tabs, or by blanks where
    there is no tab. The first line may say `folds pairs`, or only `pairs`; then, and without it, there are
    ten. In each fold the same-person pairs stand first, so the k-th of n pairs of a kind is in fold k * folds
    // n: the official folds of a complete file, and even folds of one from which pairs were taken out.
    InputError names the file and the line that is wrong.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: name a pairs.txt file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): name a pairs.txt file.") from None
    folds, pairs = 10, []
    for number, line in enumerate(lines, start=1):
        header = re.fullmatch(r"\s*(\d+)(?:\s+(\d+))?\s*", line)
        if header and number == 1:
            folds = int(header[1]) if header[2] else 10
        elif line.strip():
            pairs.append(_parse_pair(line, f"{path}, line {number}"))
    counts = {kind: sum(pair[4] == kind for pair in pairs) for kind in (True, False)}
    if folds < 1 or not all(counts.values()):
        raise InputError(f"{path} must hold pairs of one person and of two people: name a pairs.txt file.")
    seen = {True: 0, False: 0}
    result = []
    for pair in pairs:
        same = pair[4]
        result.append((*pair, seen[same] * folds // counts[same]))
        seen[same] += 1
    return result


def _parse_pair(line: str, place: str) -> tuple[str, int, str, int, bool]:
    fields = [field.strip() for field in (line.strip().split("\t") if "\t" in line else line.split())]
    if len(fields) == 3:
        fields.insert(2, fields[0])
    if len(fields) != 4 or not (fields[1].isdecimal() and fields[3].isdecimal()) or "" in fields:
        raise InputError(f"{place}: '{line.strip()}' must be 'name n m' or 'name n name m'.")
    return fields[0], int(fields[1]), fields[2], int(fields[3]), fields[0] == fields[2]


def lfw_photo(folder: Path, name: str, number: int) -> Path:
    """folder/name/name_0001 with the suffix that is there."""
    path = folder / name / f"{name}_{number:04d}.jpg"
    others = (path.with_suffix(suffix) for suffix in (".png", ".webp", ".jpeg", ".JPG"))
    return path if path.exists() else next((other for other in others if other.exists()), path)


# ---- intervals -------------------------------------------------------------------------------------------


def people_interval(
    values: np.ndarray,
    people: np.ndarray,
    rng: np.random.Generator,
    samples: int = 1000,
) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean for new people, not only for new images of these people.

    People are drawn with replacement, as many as there are; all values (V,) of a person, `people` (V,), come
    along as often as the person is drawn. The interval holds the middle 95 % of the means of so many samples.
    """
    names, person = np.unique(people, return_inverse=True)
    drawn = [np.repeat(values, _draw_counts(len(names), rng)[person]).mean() for _ in range(samples)]
    low, high = np.quantile(drawn, TAILS)
    return float(low), float(high)


def resampled_pair_weights(
    first_people: np.ndarray,
    second_people: np.ndarray,
    same: np.ndarray,
    rng: np.random.Generator,
    samples: int,
) -> Iterator[np.ndarray]:
    """Yields `samples` times weights (P,): how often each pair occurs after drawing people with replacement.

    With a person drawn w times, a same-person pair counts w times and a pair of two people w1 * w2 times
    (Owen 2007, "The pigeonhole bootstrap"). Metrics then vary as they should by the people that pairs share,
    and more than they should, by up to sqrt(3), by the single pair of two people: the intervals err on the
    wide side.
    """
    same = np.asarray(same, dtype=bool)
    names, person = np.unique(np.concatenate([first_people, second_people]), return_inverse=True)
    first, second = np.split(person, 2)
    while samples:
        counts = _draw_counts(len(names), rng)
        weights = counts[first] * np.where(same, 1, counts[second])
        if weights[same].any() and weights[~same].any():  # of very few people, a draw may leave no pair
            samples -= 1
            yield weights


def verification_report(
    scores: np.ndarray,
    same: np.ndarray,
    first_people: np.ndarray,
    second_people: np.ndarray,
    folds: np.ndarray,
    rng: np.random.Generator,
    threshold: float = 0.5,
    samples: int = 1000,
) -> dict[str, float | list[float] | None]:
    """The verification metrics of P pairs and their 95 % intervals from resampling people.

    `first_people`, `second_people` (P,) are the people of the two images, `folds` (P,) is that of
    `ten_fold_accuracy`, `threshold` that of `balanced_accuracy`. Keys: `balanced_accuracy`, `accuracy`
    (ten-fold), `roc_auc`, `eer`, `tar_at_far_0.01`, `tar_at_far_0.001`, `tar_at_far_0.0001`, and to each
    `..._interval`, [low, high]. A TAR at FAR f is None with fewer than 1 / f different-person pairs, as then
    not even one may be accepted; `accuracy` is None with a single fold. The interval of `accuracy` keeps the
    thresholds of the folds.
    """
    scores, same = _checked_pairs(scores, same)
    # Sorted once here, the sort inside each of the thousands of ROC curves below costs next to nothing.
    order = np.argsort(-scores)
    scores, same, folds = scores[order], same[order], np.asarray(folds)[order]
    first_people, second_people = np.asarray(first_people)[order], np.asarray(second_people)[order]
    fars = [far for far in REPORTED_FARS if np.sum(~same) >= 1 / far]
    correct = ten_fold_decisions(scores, same, folds) if len(np.unique(folds)) > 1 else None

    def measure(weights: np.ndarray | None = None) -> dict[str, float]:
        measured = {
            "balanced_accuracy": balanced_accuracy(scores, same, threshold, weights),
            "roc_auc": roc_auc(scores, same, weights),
            "eer": equal_error_rate(scores, same, weights),
        }
        if correct is not None:
            measured["accuracy"] = float(np.average(correct, weights=weights))
        return measured | {f"tar_at_far_{far}": tar_at_far(scores, same, far, weights) for far in fars}

    values = measure()
    weights = resampled_pair_weights(first_people, second_people, same, rng, samples)
    low_high = np.quantile([list(measure(drawn).values()) for drawn in weights], TAILS, axis=0)
    intervals = dict(zip(values, low_high.T.tolist()))
    if correct is not None:
        values["accuracy"] = ten_fold_accuracy(scores, same, folds)[0]

    report = {}
    tar_names = [f"tar_at_far_{far}" for far in REPORTED_FARS]
    for name in ["balanced_accuracy", "accuracy", "roc_auc", "eer", *tar_names]:
        report[name] = values.get(name)
        report[f"{name}_interval"] = intervals.get(name)
    return report


def _draw_counts(count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` things is drawn in as many draws with replacement: (count,)."""
    return np.bincount(rng.integers(0, count, size=count), minlength=count)
