"""Losses that learn embeddings by telling the people of the training apart.

Every loss is made by `Loss(people, embedding_size, scale, margin)` and called by `loss(embeddings, people)`:
embeddings (B, D) of any length, people (B,) int64 in 0..people-1 -> scalar, the mean over the batch. It owns a
centre for each person, the parameter `centres` (people, D), which is trained with the network and dropped afterwards.

The margin losses look at angles alone. With θ_j between an embedding and the centre of person j, and y the
embedding's own person, each is the cross-entropy of the logits scale · cos θ_j, where the own cos θ_y is replaced by
something smaller: the class docstrings say by what. So an embedding has to be nearer to its own centre than to the
others by a margin. Scale 64 makes the differences of cosines, at most 2, large enough for a confident softmax. To
random weights it is too large: chance cosines cost so much that the quickest way down is to make all faces alike, and
little is learnt after that. So a training that starts from nothing begins with scale 4, which grows to the full one.

All is computed in the precision of the centres, float32, also under autocast: bfloat16 rounds cos 2.5° to 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facekit.files import InputError

FIRST_SCALE = 4.0
SHORTEST = 1e-3  # embeddings and centres shorter than this keep a bounded gradient; a zero vector has cosine 0


class Softmax(nn.Module):
    """Cross-entropy of a linear layer, embeddings · centresᵀ + bias. InputError when given a scale or a margin."""

    def __init__(self, people: int, embedding_size: int, scale: float | None = None, margin: float | None = None):
        super().__init__()
        if scale is not None or margin is not None:
            raise InputError("The loss softmax has neither scale nor margin: leave them out, or choose another loss.")
        self.centres = nn.Parameter(random_directions(people, embedding_size))
        self.bias = nn.Parameter(torch.zeros(people))

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = F.linear(embeddings.to(self.centres.dtype), self.centres, self.bias)  # (B, people)
            return F.cross_entropy(logits, people)


class MarginLoss(nn.Module):
    """What the margin losses share: all but `own_cosines`. None for scale or margin means that of the paper.

    `done`, 0..1, is set by a training that starts from nothing: the part of it that lies behind. By that the scale
    grows from FIRST_SCALE, in equal factors.
    """

    SCALE = 64.0
    MARGIN: float

    def __init__(self, people: int, embedding_size: int, scale: float | None = None, margin: float | None = None):
        super().__init__()
        self.scale = self.SCALE if scale is None else scale
        self.margin = self.MARGIN if margin is None else margin
        self.done = 1.0
        self.centres = nn.Parameter(random_directions(people, embedding_size))

    def forward(self, embeddings: Tensor, people: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.centres.dtype)
            lengths = embeddings.detach().norm(dim=1)  # (B,)
            cosines = F.normalize(embeddings, eps=SHORTEST) @ F.normalize(self.centres, eps=SHORTEST).T  # (B, people)
            own = cosines.gather(1, people[:, None])  # (B, 1)
            own = self.own_cosines(own[:, 0], lengths)[:, None]
            first = min(FIRST_SCALE, self.scale)
            scale = first * (self.scale / first) ** self.done
            return F.cross_entropy(scale * cosines.scatter(1, people[:, None], own), people)

    def own_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        """What replaces cos θ_y (B,); lengths (B,) are those of the embeddings, without gradient."""
        raise NotImplementedError


class CosFace(MarginLoss):
    """cos θ_y - m, m = 0.35 (Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018)."""

    MARGIN = 0.35

    def own_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        return cosines - self.margin


class ArcFace(MarginLoss):
    """cos(θ_y + m), m = 0.5 radians (Deng et al., ArcFace: Additive Angular Margin Loss, 2019).

    Past θ_y = π - m that would rise again and push the embedding away from its centre. There it is cos θ_y - m sin m,
    as in the authors' code (InsightFace, recognition/arcface_torch/losses.py, easy_margin=False).
    """

    MARGIN = 0.5

    def own_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        margins = self.margins(cosines)
        widened = angles(cosines) + margins
        return torch.where(widened <= math.pi, widened.cos(), cosines - margins * margins.sin())

    def margins(self, cosines: Tensor) -> Tensor:
        return torch.full_like(cosines, self.margin)


class ElasticFace(ArcFace):
    """ArcFace, but each embedding draws its m from N(0.5, 0.05), each time anew (Boutros et al., ElasticFace: Elastic
    Margin Loss for Deep Face Recognition, 2022; ElasticFace-Arc, as configured by the authors). `margin` is the mean.

    The numbers come from torch's global generator of the CPU, on every device: torch.manual_seed repeats them.
    In evaluation mode the margin is the mean.
    """

    SPREAD = 0.05

    def margins(self, cosines: Tensor) -> Tensor:
        if not self.training:
            return super().margins(cosines)
        return torch.normal(self.margin, self.SPREAD, cosines.shape).to(cosines)


class AdaFace(MarginLoss):
    """cos(θ_y - m q) - m q - m, m = 0.4 (Kim et al., AdaFace: Quality Adaptive Margin for Face Recognition, 2022).

    The quality q is the length of the embedding, which is small for blurred and hidden faces: its distance from the
    running mean in running standard deviations, times h = 0.333, clipped to -1..1. The better the face, the larger the
    margin. No gradient flows through q. As the authors do, we clip lengths to 0.001..100 and the angle, and a batch
    counts 1 % in mean and deviation; but the first 100 batches count equally, instead of starting at mean 20 and
    deviation 100, to which short embeddings would all be equally good.
    """

    MARGIN = 0.4
    CONCENTRATION = 0.333  # h of the paper
    norm_mean: Tensor
    norm_deviation: Tensor
    batches: Tensor

    def __init__(self, people: int, embedding_size: int, scale: float | None = None, margin: float | None = None):
        super().__init__(people, embedding_size, scale, margin)
        self.register_buffer("norm_mean", torch.tensor(0.0))
        self.register_buffer("norm_deviation", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0))

    def own_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.clamp(SHORTEST, 100)
        if self.training:
            self.observe(lengths)
        deviations = (lengths - self.norm_mean) / (self.norm_deviation + 1e-3)
        shifts = self.margin * (self.CONCENTRATION * deviations).clamp(-1, 1)  # m q
        return (angles(cosines) - shifts).clamp(0, math.pi).cos() - shifts - self.margin

    def observe(self, lengths: Tensor) -> None:
        """Moves mean and deviation towards those of a batch."""
        self.batches = self.batches + 1
        weight = (1 / self.batches).clamp(min=0.01)
        self.norm_mean = self.norm_mean + weight * (lengths.mean() - self.norm_mean)
        self.norm_deviation = self.norm_deviation + weight * (lengths.std(correction=0) - self.norm_deviation)


@torch.no_grad()
def start_at_means(loss: nn.Module, embeddings: Tensor, people: Tensor) -> None:
    """Puts every centre where its person's embeddings are: (N, D), people (N,), -1 for somebody without a centre.

    Among random centres, too, all faces alike would be the quickest way down, and trained weights would be pulled
    apart (Qi et al., Low-Shot Learning with Imprinted Weights, 2018).
    """
    has_centre = people >= 0
    sums = torch.zeros_like(loss.centres).index_add_(0, people[has_centre], embeddings[has_centre])
    loss.centres.copy_(F.normalize(sums, dim=1))


def angles(cosines: Tensor) -> Tensor:
    """In radians, from 0.0014 to π - 0.0014: at 0 and π the slope of acos is infinite."""
    return cosines.clamp(-1 + 1e-6, 1 - 1e-6).acos()


def random_directions(count: int, size: int) -> Tensor:
    """Vectors (count, size) of length 1."""
    return F.normalize(torch.randn(count, size))


LOSSES: dict[str, type[Softmax] | type[MarginLoss]] = {
    "softmax": Softmax,
    "arcface": ArcFace,
    "cosface": CosFace,
    "adaface": AdaFace,
    "elasticface": ElasticFace,
}
