"""The losses against pytorch-metric-learning, torch, and the papers' formulas written as plain loops over numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss
from torch import Tensor, nn

from facekit.files import InputError
from facekit.losses import LOSSES, AdaFace, ElasticFace, start_at_means

MARGIN_LOSSES = [name for name in LOSSES if name != "softmax"]
DEFAULTS = {"arcface": (64, 0.5), "cosface": (64, 0.35), "adaface": (64, 0.4), "elasticface": (64, 0.5)}


def batch_of(loss: nn.Module, count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D) of lengths 0.5 to 20, with a gradient, and people (B,).

    A third lies beside its own centre, a third opposite of it (past π - m), a third anywhere.
    """
    random = torch.Generator().manual_seed(seed)
    centres = loss.centres.detach()
    people = torch.randint(len(centres), (count,), generator=random)
    noise = F.normalize(torch.randn(count, centres.shape[1], generator=random, dtype=centres.dtype))
    towards = torch.arange(count) % 3 - 1  # -1, 0, 1
    embeddings = F.normalize(centres[people]) * towards[:, None] + 0.3 * noise
    lengths = torch.rand(count, 1, generator=random, dtype=centres.dtype) * 19.5 + 0.5
    return (F.normalize(embeddings) * lengths).requires_grad_(), people


def make(name: str, people: int = 5, size: int = 4, dtype: torch.dtype = torch.float64, **settings: float) -> nn.Module:
    """A loss whose centres have lengths from 0.5 to 2."""
    torch.manual_seed(3)
    loss = LOSSES[name](people, size, **settings).to(dtype)
    loss.centres = nn.Parameter(loss.centres.detach() * torch.linspace(0.5, 2, people, dtype=dtype)[:, None])
    return loss


def value_and_gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- value and gradient against others


@pytest.mark.parametrize("settings", [{}, {"scale": 16.0, "margin": 0.2}])
@pytest.mark.parametrize("name, margin", [("arcface", 0.5), ("cosface", 0.35)])
def test_as_pytorch_metric_learning(name, margin, settings):
    loss = make(name, **settings)
    embeddings, people = batch_of(loss)
    scale, margin = settings.get("scale", 64.0), settings.get("margin", margin)
    if name == "arcface":
        other = ArcFaceLoss(5, 4, margin=math.degrees(margin), scale=scale)
    else:
        other = CosFaceLoss(5, 4, margin=margin, scale=scale)
    other.W = nn.Parameter(loss.centres.detach().T.clone())
    ours = value_and_gradients(loss(embeddings, people), embeddings, loss.centres)
    value, of_embeddings, of_centres = value_and_gradients(other(embeddings, people), embeddings, other.W)
    assert_equal(ours, [value, of_embeddings, of_centres.T])


def test_softmax_is_a_linear_layer_and_cross_entropy():
    loss = make("softmax")
    loss.bias = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    layer = nn.Linear(4, 5).double()
    layer.load_state_dict({"weight": loss.centres.detach(), "bias": loss.bias.detach()})
    embeddings, people = batch_of(loss)
    ours = value_and_gradients(loss(embeddings, people), embeddings, loss.centres, loss.bias)
    value = F.cross_entropy(layer(embeddings), people)
    assert_equal(ours, value_and_gradients(value, embeddings, layer.weight, layer.bias))


def angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos(sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a).sqrt() * sum(y * y for y in b).sqrt()))


def test_centres_start_at_the_mean_of_their_people():
    loss = LOSSES["cosface"](3, 2)
    embeddings = torch.tensor([[3.0, 0], [0, 1], [0, 5], [0, -2], [9, 9]])
    start_at_means(loss, embeddings, torch.tensor([1, 0, 1, 2, -1]))
    expected = torch.tensor([[0, 1], [3 / 34**0.5, 5 / 34**0.5], [0, -1]])
    torch.testing.assert_close(loss.centres.data, expected)
    assert loss.centres.requires_grad


def plain_loss(embeddings: Tensor, people: Tensor, centres: Tensor, scale: float, own_cosine) -> Tensor:
    """Mean of -log softmax, number by number; own_cosine(row, angle) replaces the cosine to the own centre."""
    total = 0
    for row, (embedding, person) in enumerate(zip(embeddings, people.tolist())):
        exponentials = []
        for number, centre in enumerate(centres):
            theta = angle(embedding, centre)
            cosine = own_cosine(row, theta) if number == person else theta.cos()
            exponentials.append((scale * cosine).exp())
        total = total - (exponentials[person] / sum(exponentials)).log()
    return total / len(people)


def plain_adaface(lengths: list[float], mean: float, deviation: float, margin: float = 0.4):
    def own_cosine(row: int, theta: Tensor) -> Tensor:
        quality = max(-1.0, min(1.0, 0.333 * (lengths[row] - mean) / (deviation + 1e-3)))
        return (theta - margin * quality).clamp(0, math.pi).cos() - (margin * quality + margin)

    return own_cosine


def test_adaface_is_the_formula_in_running_training_and_evaluation():
    loss = make("adaface")
    means, deviations = [], []
    for seed in range(3):
        embeddings, people = batch_of(loss, seed=seed)
        ours = value_and_gradients(loss(embeddings, people), embeddings, loss.centres)
        lengths = [math.sqrt(sum(x * x for x in row)) for row in embeddings.tolist()]
        means.append(sum(lengths) / len(lengths))
        deviations.append(math.sqrt(sum((x - means[-1]) ** 2 for x in lengths) / len(lengths)))
        running = sum(means) / len(means), sum(deviations) / len(deviations)
        own_cosine = plain_adaface(lengths, *running)
        plain = plain_loss(embeddings, people, loss.centres, 64, own_cosine)
        assert_equal(ours, value_and_gradients(plain, embeddings, loss.centres))
    loss.eval()
    value = loss(embeddings, people)
    torch.testing.assert_close(value, plain)
    assert loss(embeddings, people) == value  # it observes nothing


def test_adaface_clips_the_quality_and_the_angle():
    loss = make("adaface").eval()
    loss.norm_mean, loss.norm_deviation = torch.tensor(10.0), torch.tensor(1.5)
    lengths = torch.tensor([0.01, 1.0, 10.0, 19.0, 40.0])  # q from -2 to 7 before it is clipped
    for theta in (0.05, 0.3, 1.5, 2.8, 3.1):
        expected = [plain_adaface(lengths.tolist(), 10, 1.5)(row, torch.tensor(theta)) for row in range(5)]
        ours = loss.own_cosines(torch.full((5,), math.cos(theta)), lengths)
        torch.testing.assert_close(ours, torch.stack(expected))


def test_adaface_averages_100_batches_and_then_each_counts_one_percent():
    loss = AdaFace(2, 3)
    random = torch.Generator().manual_seed(0)
    mean = deviation = 0.0
    for number in range(1, 151):
        embeddings = torch.randn(6, 3, generator=random) * (1 + number / 50)
        loss(embeddings, torch.zeros(6, dtype=torch.int64))
        lengths = [math.sqrt(sum(x * x for x in row)) for row in embeddings.tolist()]
        center = sum(lengths) / 6
        new = 1 / number if number < 100 else 0.01
        mean = (1 - new) * mean + new * center
        deviation = (1 - new) * deviation + new * math.sqrt(sum((x - center) ** 2 for x in lengths) / 6)
    assert float(loss.norm_mean) == pytest.approx(mean, rel=1e-4)
    assert float(loss.norm_deviation) == pytest.approx(deviation, rel=1e-4)


def test_adaface_clips_lengths_to_100():
    loss = AdaFace(2, 3)
    loss(torch.tensor([[1e6, 0, 0], [0, 20, 0]]), torch.tensor([0, 1]))
    assert float(loss.norm_mean) == pytest.approx(60)


def test_adaface_goes_on_from_a_saved_state():
    loss, later = make("adaface"), make("adaface")
    loss(*batch_of(loss, seed=1))
    later.load_state_dict(loss.state_dict())
    assert_equal([loss(*batch_of(loss, seed=2))], [later(*batch_of(loss, seed=2))])


@pytest.mark.parametrize("settings", [{}, {"scale": 20.0, "margin": 0.3}])
def test_elasticface_is_the_formula_with_drawn_margins(settings):
    loss = make("elasticface", **settings)
    embeddings, people = batch_of(loss)
    torch.manual_seed(5)
    ours = value_and_gradients(loss(embeddings, people), embeddings, loss.centres)
    torch.manual_seed(5)
    mean = settings.get("margin", 0.5)
    margins = [mean + 0.05 * drawn for drawn in torch.randn(len(people)).tolist()]

    def own_cosine(row: int, theta: Tensor) -> Tensor:
        m = margins[row]
        return (theta + m).cos() if theta + m <= math.pi else theta.cos() - m * math.sin(m)

    plain = plain_loss(embeddings, people, loss.centres, settings.get("scale", 64.0), own_cosine)
    for mine, other in zip(ours, value_and_gradients(plain, embeddings, loss.centres)):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)  # the margins are drawn in float32


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope(name):
    """Evaluation mode, so that nothing is drawn; AdaFace's embeddings are left out: q has no gradient on purpose."""
    loss = make(name).eval()
    embeddings, people = batch_of(loss, count=9)

    def value(embeddings: Tensor, centres: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"centres": centres}, (embeddings, people))

    embeddings.requires_grad_(name != "adaface")
    assert torch.autograd.gradcheck(value, (embeddings, loss.centres), eps=1e-7, atol=1e-4)


# ---------------------------------------------------------------- margins


@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_defaults_are_those_of_the_paper_and_0_is_no_default(name):
    scale, margin = DEFAULTS[name]
    loss, same, none = make(name), make(name, scale=scale, margin=margin), make(name, margin=0.0)
    embeddings, people = batch_of(loss)
    values = []
    for each in (loss, same, none.eval()):
        torch.manual_seed(0)
        values.append(each(embeddings, people))
    assert values[0] == values[1]
    cosines = F.normalize(embeddings) @ F.normalize(loss.centres).T
    torch.testing.assert_close(values[2], F.cross_entropy(64 * cosines, people))


@pytest.mark.parametrize("name", MARGIN_LOSSES)
@pytest.mark.parametrize("degrees", [5, 60, 90, 120, 175])
def test_a_margin_makes_the_loss_larger(name, degrees):
    values = []
    for margin in (0.0, 0.1, None):
        loss = LOSSES[name](2, 2, scale=8.0, margin=margin)
        loss.centres = nn.Parameter(torch.eye(2))
        direction = torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])
        values.append(loss(3 * direction, torch.tensor([0])).item())
    assert values[0] < values[1] < values[2]


def test_adaface_asks_more_of_longer_embeddings():
    loss = AdaFace(3, 2)
    lengths = torch.tensor([1.0, 4.0, 7.0, 10.0, 13.0])
    for theta in (0.3, 1.0, 2.0, 2.6):
        required = loss.own_cosines(torch.full((5,), math.cos(theta)), lengths)
        assert (required.diff() < 0).all()
        assert (required < math.cos(theta)).all()


def test_elasticface_repeats_with_the_seed_and_draws_anew_without():
    loss = make("elasticface")
    embeddings, people = batch_of(loss)
    torch.manual_seed(1)
    first, second = loss(embeddings, people), loss(embeddings, people)
    torch.manual_seed(1)
    assert loss(embeddings, people) == first
    assert second != first


def test_elasticface_draws_a_margin_for_each_embedding():
    loss = ElasticFace(2, 2)
    torch.manual_seed(0)
    margins = loss.own_cosines(torch.zeros(20_000), torch.ones(20_000)).acos() - math.pi / 2
    assert float(margins.mean()) == pytest.approx(0.5, abs=2e-3)
    assert float(margins.std()) == pytest.approx(0.05, rel=0.05)


def test_elasticface_uses_the_mean_margin_in_evaluation():
    elastic, arc = make("elasticface").eval(), make("arcface")
    embeddings, people = batch_of(arc)
    before = torch.get_rng_state()
    assert elastic(embeddings, people) == arc(embeddings, people)
    assert torch.equal(torch.get_rng_state(), before)  # it draws nothing


# ---------------------------------------------------------------- numerical stability


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -3.0, 0.0], ids=["0", "0 long", "pi", "pi long", "zero vector"])
def test_finite_at_0_at_pi_and_for_zero_vectors(name, dtype, factor):
    loss = LOSSES[name](4, 4)
    loss.centres = nn.Parameter(torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [2.0, 0, 0, 0]]))
    people = torch.arange(4)
    embeddings = (factor * loss.centres.detach()).to(dtype).requires_grad_()
    value = loss(embeddings, people)
    of_embeddings, of_centres = torch.autograd.grad(value, [embeddings, loss.centres])
    assert value.dtype == of_centres.dtype == torch.float32 and of_embeddings.dtype == dtype
    assert value.isfinite() and of_embeddings.isfinite().all() and of_centres.isfinite().all()
    assert of_embeddings.abs().max() <= 2 * 64 / 1e-3 / 4


@pytest.mark.parametrize("name", LOSSES)
def test_finite_for_a_centre_that_is_zero(name):
    loss = LOSSES[name](3, 4)
    loss.centres = nn.Parameter(loss.centres.detach() * torch.tensor([[1.0], [0.0], [1.0]]))
    value = loss(torch.ones(3, 4), torch.arange(3))
    (gradient,) = torch.autograd.grad(value, [loss.centres])
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_gradient_in_float32_stays_bounded_and_right_from_0_to_pi(name):
    """With cosines for logits no gradient exceeds 2 · scale / length, however near the angle is to 0 or π."""
    small = [0, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 1e-2]
    theta = torch.tensor([*small, *torch.linspace(0.1, 3, 30), *(math.pi - x for x in small)], dtype=torch.float64)
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        loss = LOSSES[name](2, 2).to(dtype).eval()  # AdaFace: all of one quality
        loss.centres = nn.Parameter(torch.tensor([[0.6, 0.8], [-1, 0.1]], dtype=dtype))
        start = math.atan2(0.8, 0.6)
        embeddings = 2 * torch.stack([(start + theta).cos(), (start + theta).sin()], 1).to(dtype).requires_grad_()
        value = loss(embeddings, torch.zeros(len(theta), dtype=torch.int64)) * len(theta)
        (gradients[dtype],) = torch.autograd.grad(value, embeddings)
    assert (gradients[torch.float32].norm(dim=1) <= 1.01 * 2 * 64 / 2).all()
    middle = (theta > 5e-3) & (theta < math.pi - 5e-3)
    torch.testing.assert_close(gradients[torch.float32][middle], gradients[torch.float64][middle].float(),
                               rtol=0.02, atol=0.02)  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    loss = make(name, people=50, size=32, dtype=torch.float32).eval()
    embeddings, people = batch_of(loss)
    plain = value_and_gradients(loss(embeddings, people), embeddings, loss.centres)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(embeddings, people)
    for mine, other in zip(value_and_gradients(value, embeddings, loss.centres), plain):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


# ---------------------------------------------------------------- use


@pytest.mark.parametrize("name", LOSSES)
def test_centres_start_at_length_1_in_all_directions(name):
    centres = LOSSES[name](2000, 3).centres
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(2000))
    assert centres.mean(0).norm() < 0.1


@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_the_scale_grows_from_4_by_equal_factors(name):
    loss = make(name, margin=0.0).eval()
    embeddings, people = batch_of(loss)
    cosines = F.normalize(embeddings) @ F.normalize(loss.centres).T
    for done, scale in [(0, 4), (0.25, 8), (0.5, 16), (1, 64)]:
        loss.done = done
        torch.testing.assert_close(loss(embeddings, people), F.cross_entropy(scale * cosines, people))
    loss.scale, loss.done = 2.0, 0.5  # a smaller one stays
    torch.testing.assert_close(loss(embeddings, people), F.cross_entropy(2 * cosines, people))


@pytest.mark.parametrize("name", LOSSES)
def test_training_separates_people(name):
    """Two of ten numbers tell four people apart, the others are loud noise; a linear layer has to find them."""
    torch.manual_seed(0)
    people = torch.arange(800) % 4
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    signal, noise = corners[people] + 0.15 * torch.randn(800, 2), 3 * torch.randn(800, 8)
    photos = torch.cat([signal, noise], dim=1) @ nn.init.orthogonal_(torch.empty(10, 10))
    model, loss = nn.Linear(10, 3), LOSSES[name](4, 3, **({} if name == "softmax" else {"scale": 16.0}))

    def share_right() -> float:
        """Of the second half of the photos, those whose nearest centre is their person's."""
        with torch.no_grad():
            cosines = F.normalize(model(photos[400:])) @ F.normalize(loss.centres).T
        return float((cosines.argmax(1) == people[400:]).float().mean())

    before = share_right()
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(photos[:400]), people[:400]).backward()
        optimizer.step()
    assert before < 0.6
    assert share_right() > 0.97


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("person", [5, -1])
def test_a_person_without_a_centre_is_an_error(name, person):
    loss = make(name)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss(torch.ones(1, 4, dtype=torch.float64), torch.tensor([person]))


@pytest.mark.parametrize("settings", [{"scale": 64.0}, {"margin": 0.0}])
def test_softmax_refuses_what_it_does_not_use(settings):
    with pytest.raises(InputError, match="neither scale nor margin"):
        LOSSES["softmax"](3, 4, **settings)
