"""Networks that can stand in for ResNet18: faces (B, C, S, S) in 0..1 -> embeddings (B, D), not of length 1.

    model = backbones.build("mobilefacenet", embedding_size=128, channels=3, image_size=112)

All take the values 0..1 as they are: ours have a normalisation behind the first layer, which centres them.
"""

import difflib
import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facekit.files import InputError

# ---------------------------------------------------------------- MobileFaceNet


class MobileFaceNet(nn.Module):
    """Depthwise bottlenecks for phones, 1.0 M weights (Chen et al. 2018, table 1).

    Its global depthwise convolution weighs each place of the last feature map, which averaging would not: the middle
    of an aligned face says more than its corners. InputError when image_size is under 16.
    """

    def __init__(self, embedding_size: int = 128, channels: int = 3, image_size: int = 112):
        super().__init__()
        if image_size < 16:
            raise InputError(f"mobilefacenet needs larger faces: give an --image-size of 16 or more instead of "
                             f"{image_size}.")  # fmt: skip
        last = math.ceil(image_size / 16)  # side of the last feature map: 7 for 112
        self.features = nn.Sequential(
            *convolution(channels, 64, kernel=3, stride=2), PReLU(64),
            *convolution(64, 64, kernel=3, groups=64), PReLU(64),
            *bottlenecks(64, 64, count=5, expansion=2, stride=2),
            *bottlenecks(64, 128, count=1, expansion=4, stride=2),
            *bottlenecks(128, 128, count=6, expansion=2),
            *bottlenecks(128, 128, count=1, expansion=4, stride=2),
            *bottlenecks(128, 128, count=2, expansion=2),
            *convolution(128, 512, kernel=1), PReLU(512),
        )  # (B, channels, S, S) -> (B, 512, S / 16, S / 16)  # fmt: skip
        self.head = nn.Sequential(
            nn.Conv2d(512, 512, last, groups=512, bias=False), nn.BatchNorm2d(512),  # global depthwise, linear
            nn.Flatten(), nn.Linear(512, embedding_size, bias=False), nn.BatchNorm1d(embedding_size),
        )  # -> (B, embedding_size)  # fmt: skip

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.features(faces)).float()


class PReLU(nn.PReLU):
    """x where it is positive, weight · x elsewhere; in training as a mixture of relu(x) and x.

    torch's own backward pass takes 3 times as long, a third of a training step on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.lerp(x.relu(), x, self.weight.to(x.dtype)[:, None, None])


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (or divides it by the stride), and its normalisation."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs)]  # fmt: skip


def bottlenecks(inputs: int, outputs: int, count: int, expansion: int, stride: int = 1) -> list[nn.Module]:
    """`count` bottlenecks; only the first one has the stride."""
    return [Bottleneck(outputs if number else inputs, outputs, expansion, 1 if number else stride)
            for number in range(count)]  # fmt: skip


class Bottleneck(nn.Module):
    """Inverted residual (Sandler et al. 2018): widen, filter each channel by itself, narrow without activation."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        width = inputs * expansion
        self.layers = nn.Sequential(
            *convolution(inputs, width, kernel=1), PReLU(width),
            *convolution(width, width, kernel=3, stride=stride, groups=width), PReLU(width),
            *convolution(width, outputs, kernel=1),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


# ---------------------------------------------------------------- Mamba


class Mamba(nn.Module):
    """Patches of 8×8 pixels, read one after another by selective state-space layers (Gu and Dao 2023); 1.9 M weights.

    Convolutions find what each patch and its neighbours show. A picture has no first and last patch: each block reads
    in another direction than the block before. What the patches say is summed with one weight for each place and
    channel, as in MobileFaceNet.
    InputError when image_size is no multiple of 8.
    """

    def __init__(self, embedding_size: int = 128, channels: int = 3, image_size: int = 112,
                 width: int = 256, inner: int = 192, states: int = 8, blocks: int = 2):  # fmt: skip
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise InputError(f"mamba cuts faces into patches of 8 pixels: give an --image-size that is a multiple of "
                             f"8 instead of {image_size}.")  # fmt: skip
        self.side = image_size // 8
        self.patches = nn.Sequential(  # small steps learn more easily than one convolution of stride 8
            *convolution(channels, 32, kernel=3, stride=2), nn.SiLU(),
            *convolution(32, 64, kernel=3, stride=2), nn.SiLU(), ResidualBlock(64), ResidualBlock(64),
            *convolution(64, width, kernel=3, stride=2), ResidualBlock(width),
        )  # (B, channels, S, S) -> (B, width, S / 8, S / 8)  # fmt: skip
        self.places = nn.Parameter(0.02 * torch.randn(self.side**2, width))
        self.blocks = nn.ModuleList(StateSpaceBlock(width, inner, states) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.pooling = nn.Parameter(torch.full((self.side**2, width), 1 / self.side**2))
        self.head = nn.Linear(width, embedding_size)

    def forward(self, faces: Tensor) -> Tensor:
        tokens = self.patches(faces).flatten(2).transpose(1, 2) + self.places  # (B, L, width), row by row
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number % 2:  # rows become columns
                tokens = tokens.unflatten(1, (self.side, self.side)).transpose(1, 2).flatten(1, 2)
            else:  # forwards becomes backwards
                tokens = tokens.flip(1)
        return self.head((self.norm(tokens) * self.pooling).sum(1)).float()


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, added to what they see (He et al. 2016): (B, width, H, W) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(width, width, kernel=3), nn.SiLU(), *convolution(width, width, kernel=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.layers(x))


class StateSpaceBlock(nn.Module):
    """tokens (B, L, width) -> the same with a selective state-space layer added (Gu and Dao 2023, section 3.4)."""

    def __init__(self, width: int, inner: int, states: int, kernel: int = 4):
        super().__init__()
        rank = width // 16
        self.split = [rank, states, states]
        self.norm = nn.LayerNorm(width)
        self.input = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.select = nn.Linear(inner, sum(self.split), bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rates = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, width, bias=False)
        with torch.no_grad():  # steps of 0.001 to 0.1 at first: memories from one token to all of them
            steps = torch.exp(torch.empty(inner).uniform_(math.log(0.001), math.log(0.1)))
            self.step.bias.copy_(steps.expm1().log())  # the inverse of softplus

    def forward(self, tokens: Tensor) -> Tensor:
        x, gate = self.input(self.norm(tokens)).chunk(2, dim=2)  # (B, L, inner) each
        x = self.convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)  # sees the past alone
        x = F.silu(x.contiguous())  # in this order of memory the scan is faster
        step, B, C = self.select(x).split(self.split, dim=2)  # (B, L, rank), (B, L, N), (B, L, N)
        delta = F.softplus(self.step(step))  # (B, L, inner)
        with torch.autocast(x.device.type, enabled=False):  # sums over hundreds of tokens want float32
            A = -self.log_rates.float().exp()  # (inner, N)
            y = selective_scan(x.float(), delta.float(), A, B.float(), C.float()) + self.skip * x
        return tokens + self.output(y * F.silu(gate))


# ---------------------------------------------------------------- the selective scan


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y (batch, L, D) of the recurrence of Gu and Dao (2023), algorithm 2, without its skip, and with delta B for the
    discretised B, as in the authors' code:

        h[t] = exp(delta[t] A) h[t - 1] + delta[t] B[t] x[t]        h (D, N), zero at first
        y[t] = C[t] · h[t]

    x and delta > 0: (batch, L, D); A < 0: (D, N); B and C: (batch, L, N). On CUDA the kernel of mamba_ssm does it,
    where that is installed; else SelectiveScan.
    """
    if not torch.is_grad_enabled() and (torch.jit.is_tracing() or torch.compiler.is_compiling()):
        return scan_by_doubling(x, delta, A, B, C)
    if x.is_cuda and (kernel := cuda_kernel()):
        x, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (x, delta, B, C))  # time comes last
        return kernel(x, delta, A, B, C).transpose(1, 2)
    return SelectiveScan.apply(x, delta, A, B, C)


def scan_by_doubling(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same for exported models: few operations, none in place, for any number of images.

    In round k the state at t, which knows the last 2^k inputs, gets what the state at t - 2^k knows: log2 L rounds
    (Hillis and Steele 1986).
    """
    decays = (delta[:, :, None] * A.T).exp()  # (b, L, N, D), over the last 2^k steps
    states = (delta * x)[:, :, None] * B[..., None]  # (b, L, N, D)
    step = 1
    while step < x.shape[1]:
        later = (0, 0, 0, 0, step, 0)
        states = states + decays * F.pad(states[:, :-step], later)
        decays = decays * F.pad(decays[:, :-step], later)
        step *= 2
    return (C[:, :, None] @ states).squeeze(2)


@functools.cache  # Python would look for a package that is missing each time
def cuda_kernel() -> Callable[..., Tensor] | None:
    """selective_scan_fn of mamba_ssm, None where it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


class SelectiveScan(torch.autograd.Function):
    """The recurrence and its gradient in plain PyTorch, parallel over time.

    The states are N times as large as the input. They are never kept: the gradient makes them again, and on a
    processor few images are done at a time, in the same buffers, so that their states stay in the cache.
    """

    @staticmethod
    def forward(ctx, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        ctx.save_for_backward(x, delta, A, B, C)
        y = torch.empty_like(x)
        buffers = new_buffers(2, x, A)
        parts = slices(x, delta, B, C, y)
        with torch.autocast(x.device.type, enabled=False):
            for x, delta, B, C, y_part in parts:
                _, states = decays_and_states(x, delta, A, B, *buffers[:, : len(x)])
                y_part.copy_((C[:, :, None] @ states[:, 1:]).squeeze(2))
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, ...]:
        x, delta, A, B, C = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (x, delta, B, C)]
        dA = torch.zeros_like(A)
        buffers = new_buffers(3, x, A)
        parts = slices(x, delta, B, C, dy, *gradients)
        with torch.autocast(x.device.type, enabled=False):
            for x, delta, B, C, dy, dx, ddelta, dB, dC in parts:
                *two, third = buffers[:, : len(x)]
                decays, states = decays_and_states(x, delta, A, B, *two)
                dC.copy_((states[:, 1:] @ dy[..., None]).squeeze(3))
                # A state is felt in its own output and in the next state: a scan from the end.
                dstates = torch.mul(dy[:, :, None], C[..., None], out=third[:, 1:])  # (b, L, N, D)
                scan_(decays[:, 1:], dstates, reverse=True)
                dB.copy_((dstates @ (delta * x)[..., None]).squeeze(3))
                dinput = (B[:, :, None] @ dstates).squeeze(2)  # of delta * x
                dexponent = dstates.mul_(states[:, :-1]).mul_(decays[:, :-1])  # of delta A
                dA += torch.mul(dexponent, delta[:, :, None], out=states[:, 1:]).sum(1).sum(0).T
                dx.copy_(dinput * delta)
                ddelta.copy_(dexponent.mul_(A.T).sum(2) + dinput * x)
        dx, ddelta, dB, dC = gradients
        return dx, ddelta, dA, dB, dC


def images_at_once(x: Tensor) -> int:
    """Two for each processor core that is used; on a GPU all."""
    return 2 * torch.get_num_threads() if x.device.type == "cpu" else len(x)


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, few images at a time; writing into a part writes into the whole."""
    return zip(*(tensor.split(images_at_once(tensors[0])) for tensor in tensors))


def new_buffers(count: int, x: Tensor, A: Tensor) -> Tensor:
    """(count, b, L + 1, N, D) for b images at a time."""
    return x.new_empty(count, images_at_once(x), x.shape[1] + 1, *A.T.shape)


def decays_and_states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, decays: Tensor,
                      states: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """decays, exp(delta A), and states, both (b, L + 1, N, D), in the tensors given for them.

    states[:, 0] is zero and states[:, t + 1] = decays[:, t] states[:, t] + delta[t] B[t] x[t]. The last decay, 1, is
    there for the gradient.
    """
    one_before, one_after = (0, 0, 1, 0), (0, 0, 0, 1)
    decays = torch.mul(F.pad(delta, one_after)[:, :, None], A.T.contiguous(), out=decays).exp_()
    states = torch.mul(F.pad(delta * x, one_before)[:, :, None], F.pad(B, one_before)[..., None], out=states)
    scan_(decays[:, :-1], states[:, 1:])
    return decays, states


def scan_(decays: Tensor, values: Tensor, reverse: bool = False) -> None:
    """In place, values[:, t] += decays[:, t] * values[:, t - 1] for t = 1, 2, ...; both (b, L, ...).

    In reverse values[:, t] += decays[:, t] * values[:, t + 1], from the end. Instead of L steps one after another,
    about 3 √L wide ones: time is cut into √L chunks of √L steps. First what each chunk makes of zero is found, in all
    chunks at once; then what goes from chunk to chunk; last the values, again in all chunks at once. (Cuts are at a
    divisor of L; L is the square of the number of patches in a row.)
    """
    length = values.shape[1]
    chunk = max(divisor for divisor in range(1, math.isqrt(length) + 1) if length % divisor == 0)
    decays, values = (tensor.unflatten(1, (-1, chunk)) for tensor in (decays, values))  # (b, chunks, chunk, ...)
    decay_of_chunk = decays.prod(2)
    decays, values = decays.unbind(2), values.unbind(2)  # for each step of a chunk (b, chunks, ...)
    if reverse:
        decays, values = decays[::-1], values[::-1]
    carry = values[0].clone()
    for decay, value in zip(decays[1:], values[1:]):
        torch.addcmul(value, decay, carry, out=carry)
    step_by_step_(decay_of_chunk.unbind(1), carry.unbind(1), reverse)
    if reverse:
        values[0][:, :-1].addcmul_(decays[0][:, :-1], carry[:, 1:])
    else:
        values[0][:, 1:].addcmul_(decays[0][:, 1:], carry[:, :-1])
    step_by_step_(decays, values)


def step_by_step_(decays: tuple[Tensor, ...], values: tuple[Tensor, ...], reverse: bool = False) -> None:
    """The same of scan_ for tensors of one step each, one after another."""
    if reverse:
        decays, values = decays[::-1], values[::-1]
    for decay, before, value in zip(decays[1:], values, values[1:]):
        value.addcmul_(decay, before)


# ---------------------------------------------------------------- by name

BACKBONES = {"mobilefacenet": MobileFaceNet, "mamba": Mamba}


def build(name: str, embedding_size: int = 128, channels: int = 3, image_size: int = 112) -> nn.Module:
    """The untrained network of that name: one of BACKBONES, or timm:NAME for any model of timm.

    InputError when the name is unknown, timm is not installed, or the network does not take that image size.
    """
    check_name(name)
    if name.startswith("timm:"):
        return build_timm(name.removeprefix("timm:"), embedding_size, channels, image_size)
    return BACKBONES[name](embedding_size, channels, image_size)


def check_name(name: str) -> None:
    """InputError, which names those there are, when no backbone has this name."""
    if name not in BACKBONES and not name.startswith("timm:"):
        raise InputError(f"There is no backbone {name}: choose resnet18, {', '.join(sorted(BACKBONES))} or timm:NAME.")


def build_timm(name: str, embedding_size: int, channels: int, image_size: int) -> nn.Module:
    """A model of timm with `embedding_size` outputs."""
    try:
        import timm
    except ImportError:
        raise InputError(f"The backbone timm:{name} needs timm: pip install timm.") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise InputError(f"timm has no model {name}; near names: {', '.join(near) or 'none'}.")
    options = {"pretrained": False, "in_chans": channels, "num_classes": embedding_size}
    try:
        try:
            model = timm.create_model(name, img_size=image_size, **options)
        except TypeError:  # a convolutional network, which takes every size
            model = timm.create_model(name, **options)
        with torch.no_grad():
            shape = tuple(model.eval()(torch.zeros(1, channels, image_size, image_size)).shape)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"timm:{name} does not take faces of {channels}×{image_size}×{image_size} ({error}): choose "
                         f"another --image-size or backbone.") from None  # fmt: skip
    if shape != (1, embedding_size):
        raise InputError(f"timm:{name} gives {shape} instead of (1, {embedding_size}): choose another backbone.")
    return model.train()
