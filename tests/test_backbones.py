"""Backbones: shapes and sizes, that they learn, the selective scan against its recurrence, timm and the CUDA kernel."""

import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facekit import backbones
from facekit.backbones import BACKBONES
from facekit.files import InputError

each_backbone = pytest.mark.parametrize("name", sorted(BACKBONES))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor time of the fastest run: other programs on the machine do not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


# ---------------------------------------------------------------- what all backbones share


@each_backbone
@pytest.mark.parametrize("embedding_size, channels, image_size", [(128, 3, 112), (32, 1, 80), (7, 4, 64), (512, 3, 40)])
def test_faces_become_embeddings(name: str, embedding_size: int, channels: int, image_size: int):
    model = backbones.build(name, embedding_size, channels, image_size).eval()
    with torch.no_grad():
        embeddings = model(torch.rand(2, channels, image_size, image_size))
        assert model(torch.rand(0, channels, image_size, image_size)).shape == (0, embedding_size)
    assert embeddings.shape == (2, embedding_size) and embeddings.dtype == torch.float32
    assert embeddings.isfinite().all() and not torch.allclose(embeddings[0], embeddings[1])


@each_backbone
def test_defaults_are_colour_112_and_128_numbers(name: str):
    with torch.no_grad():
        assert backbones.build(name).eval()(torch.rand(1, 3, 112, 112)).shape == (1, 128)


@pytest.mark.parametrize("name, image_size", [("mamba", 100), ("mamba", 0), ("mamba", 4), ("mobilefacenet", 15)])
def test_an_image_size_that_does_not_fit_is_named(name: str, image_size: int):
    with pytest.raises(InputError, match=rf"{name} .*--image-size .*{image_size}"):
        backbones.build(name, image_size=image_size)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="no backbone mobilenet: choose resnet18, mamba, mobilefacenet or timm:NAME"):
        backbones.build("mobilenet")


@each_backbone
def test_a_face_has_the_same_embedding_alone_and_among_others(name: str):
    model = backbones.build(name, 16, 1, 48)
    faces = torch.rand(5, 1, 48, 48)
    model(faces)  # the running statistics are no longer those of the start
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(face[None]) for face in faces])
        torch.testing.assert_close(model(faces), alone, rtol=1e-4, atol=1e-5)


@each_backbone
def test_gradients_reach_every_weight(name: str):
    torch.manual_seed(0)
    model = backbones.build(name, 16, 3, 32)
    (model(torch.rand(6, 3, 32, 32)) * torch.randn(6, 16)).sum().backward()
    untouched = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert untouched == []
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@each_backbone
def test_a_short_training_lowers_the_loss(name: str):
    torch.manual_seed(0)
    patterns, model = torch.rand(4, 3, 32, 32), backbones.build(name, 4, 3, 32)
    people = torch.arange(4).repeat(4)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        faces = 0.6 * patterns[people] + 0.4 * torch.rand(16, 3, 32, 32)
        loss = F.cross_entropy(model(faces), people)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@each_backbone
def test_bfloat16_autocast_is_near_float32_and_trains(name: str):
    torch.manual_seed(0)
    model, faces = backbones.build(name, 32, 3, 48), torch.rand(8, 3, 48, 48)
    model(faces)
    model.eval()
    exact = model(faces)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(faces)
    assert embeddings.dtype == torch.float32
    assert F.cosine_similarity(embeddings, exact).min() > 0.99
    embeddings.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


# ---------------------------------------------------------------- MobileFaceNet


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_prelu_in_training_is_that_of_torch_with_its_gradients(dtype: torch.dtype):
    ours, theirs = backbones.PReLU(5).double(), nn.PReLU(5).to(dtype)
    weights = torch.tensor([-0.5, 0.0, 0.25, 0.75, 1.5], dtype=dtype)
    ours.weight.data, theirs.weight.data = weights.double(), weights
    x = torch.randn(64, 5, 6, 6).to(dtype)
    factors = torch.randn_like(x)
    gradients = []
    for layer in (ours, theirs):
        faces = x.clone().requires_grad_()
        values = layer(faces)
        (values * factors).sum().backward()
        gradients.append((values, faces.grad, layer.weight.grad.to(dtype)))
    for mine, expected in zip(*gradients):
        torch.testing.assert_close(mine, expected, **({} if dtype == torch.float64 else dict(rtol=0.02, atol=0.02)))


def test_mobilefacenet_has_the_layers_of_the_paper():
    """Table 1 of Chen et al. (2018), counted by hand: a convolution has no bias but a normalisation behind it."""
    # Each row: width before, expansion, width after, how often.
    table = [(64, 2, 64, 5), (64, 4, 128, 1), (128, 2, 128, 6), (128, 4, 128, 1), (128, 2, 128, 2)]
    expected = (3 * 9 + 2 + 1) * 64 + (9 + 2 + 1) * 64  # convolution, normalisation, PReLU; the same for each channel
    for before, expansion, after, count in table:
        wide = before * expansion
        expected += count * (before * wide + 3 * wide + 9 * wide + 3 * wide + wide * after + 2 * after)
    expected += 128 * 512 + 3 * 512 + (7 * 7 + 2) * 512 + 512 * 128 + 2 * 128
    model = backbones.build("mobilefacenet").eval()
    assert weights_of(model) == expected
    assert 0.95e6 < expected < 1.05e6
    sides = []
    for layer in model.features:
        if isinstance(layer, nn.Conv2d | backbones.Bottleneck):
            layer.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[2]))
    with torch.no_grad():
        model(torch.rand(1, 3, 112, 112))
    assert sides == [56, 56] + [28] * 5 + [14] * 7 + [7] * 4


def test_a_bottleneck_adds_its_input_only_where_the_size_stays():
    for bottleneck, added in [(backbones.Bottleneck(8, 8, 2, 1), True), (backbones.Bottleneck(8, 8, 2, 2), False),
                              (backbones.Bottleneck(8, 4, 2, 1), False)]:  # fmt: skip
        nn.init.zeros_(bottleneck.layers[-1].weight)  # of the last normalisation: the layers give zero
        faces = torch.rand(2, 8, 6, 6)
        torch.testing.assert_close(bottleneck(faces), faces if added else torch.zeros_like(bottleneck(faces)))


def test_mobilefacenet_is_at_most_5_mb_on_disk():
    state = {key: tensor.contiguous() for key, tensor in backbones.build("mobilefacenet").state_dict().items()}
    assert 3.9e6 < len(safetensors.torch.save(state)) <= 5e6


def test_mobilefacenet_needs_less_than_50_ms_for_a_face(one_thread: None):
    model, face = backbones.build("mobilefacenet").eval(), torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        assert least_seconds(lambda: model(face), repeats=15) < 0.05


# ---------------------------------------------------------------- Mamba


def test_mamba_has_about_two_million_weights():
    assert 1.9e6 < weights_of(backbones.build("mamba")) < 2.0e6


def test_each_block_reads_the_patches_in_another_direction():
    class Recorder(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            orders.append(tokens[0, :, 0].tolist())
            return tokens

    orders, grid = [], torch.arange(9.0).view(3, 3)
    model = backbones.Mamba(8, 1, 24, width=16)
    model.patches = nn.Sequential(nn.Conv2d(1, 16, 8, 8, bias=False))
    nn.init.zeros_(model.patches[0].weight)
    model.places = nn.Parameter(grid.reshape(9, 1).repeat(1, 16))
    model.blocks = nn.ModuleList(Recorder() for _ in range(5))
    model(torch.rand(1, 1, 24, 24))
    by_rows, by_columns = grid.flatten().tolist(), grid.T.flatten().tolist()
    assert orders == [by_rows, by_rows[::-1], by_columns[::-1], by_columns, by_rows]


def test_patches_are_read_row_by_row():
    model = backbones.Mamba(8, 1, 32, width=16, blocks=0).eval()
    faces = torch.rand(2, 1, 32, 32)
    patches = model.patches(faces)  # (2, 16, 4, 4)
    tokens = model.norm(patches.flatten(2).transpose(1, 2) + model.places)
    expected = model.head((tokens * model.pooling).sum(1))
    torch.testing.assert_close(model(faces), expected)
    assert patches.shape == (2, 16, 4, 4)


def test_a_block_sees_the_past_and_never_the_future():
    torch.manual_seed(0)
    block = backbones.StateSpaceBlock(width=32, inner=16, states=4)
    tokens = torch.randn(1, 10, 32, requires_grad=True)
    block(tokens)[0, 6].sum().backward()
    seen = tokens.grad[0].abs().sum(1) > 0
    assert seen.tolist() == [True] * 7 + [False] * 3


def test_a_block_is_the_layer_of_the_paper():
    """Section 3.4 and algorithm 2 of Gu and Dao (2023), a token at a time."""
    torch.manual_seed(0)
    block = backbones.StateSpaceBlock(width=32, inner=6, states=4, kernel=4)
    nn.init.normal_(block.skip)
    tokens = torch.randn(2, 9, 32)
    history, state, outputs = torch.zeros(2, 4, 6), torch.zeros(2, 6, 4), []
    for token in tokens.unbind(1):
        x, gate = block.input(block.norm(token)).split(6, dim=1)
        history = torch.cat([history[:, 1:], x[:, None]], dim=1)  # the last four
        x = F.silu((history * block.convolution.weight[:, 0].T).sum(1) + block.convolution.bias)
        step, B, C = block.select(x).split([2, 4, 4], dim=1)
        delta = F.softplus(block.step(step))[..., None]  # (2, 6, 1)
        state = torch.exp(-delta * block.log_rates.exp()) * state + delta * B[:, None] * x[..., None]
        y = (state * C[:, None]).sum(2) + block.skip * x
        outputs.append(token + block.output(y * F.silu(gate)))
    torch.testing.assert_close(block(tokens), torch.stack(outputs, dim=1))


def test_first_steps_are_small_and_rates_are_one_to_n():
    torch.manual_seed(0)
    block = backbones.StateSpaceBlock(width=32, inner=512, states=5)
    steps = F.softplus(block.step.bias)
    assert 0.00099 < steps.min() < 0.0011 and 0.097 < steps.max() < 0.101
    torch.testing.assert_close(block.log_rates.exp(), torch.tensor([1.0, 2, 3, 4, 5]).repeat(512, 1))


def test_an_exported_mamba_takes_any_number_of_faces():
    model = backbones.Mamba(16, 1, 32, width=32, blocks=1).eval()
    faces = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        exported = torch.export.export(model, (faces[:2],), dynamic_shapes=({0: torch.export.Dim("faces")},))
        torch.testing.assert_close(exported.module()(faces), model(faces), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- the selective scan


def scan_step_by_step(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as the paper writes it."""
    h, outputs = x.new_zeros(len(x), *A.shape), []  # (batch, D, N)
    for x_t, delta_t, B_t, C_t in zip(x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1)):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * x_t)[..., None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(2))
    return torch.stack(outputs, dim=1)


def scan_inputs(batch: int, length: int, width: int, states: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, delta, A, B, C; some steps are so long that a state forgets all, some so short that it keeps all."""
    random = torch.Generator().manual_seed(length)
    shapes = [(batch, length, width), (batch, length, width), (width, states), (batch, length, states),
              (batch, length, states)]  # fmt: skip
    x, delta, A, B, C = (torch.randn(shape, generator=random, dtype=dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (x, (3 * delta - 2).exp(), -A.exp(), B, C)]


def result_and_gradients(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    y = scan(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    return [y, *torch.autograd.grad((y * weights).sum(), inputs)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 12, 13, 49, 97, 100, 196])
def test_scan_and_gradient_equal_the_recurrence(length: int):
    inputs = scan_inputs(3, length, 5, 4, torch.float64)
    expected = result_and_gradients(scan_step_by_step, inputs)
    for found, wanted in zip(result_and_gradients(backbones.selective_scan, inputs), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_scan_is_the_same_for_any_number_of_images_at_a_time(threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs = scan_inputs(5, 16, 3, 2, torch.float64)
    expected = result_and_gradients(scan_step_by_step, inputs)
    for found, wanted in zip(result_and_gradients(backbones.selective_scan, inputs), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_scan_in_float32():
    inputs = scan_inputs(2, 196, 24, 8)
    exact = result_and_gradients(scan_step_by_step, [tensor.detach().double().requires_grad_() for tensor in inputs])
    for found, wanted in zip(result_and_gradients(backbones.selective_scan, inputs), exact):
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_scan_stays_exact_under_autocast():
    inputs = scan_inputs(2, 36, 8, 4)
    expected = result_and_gradients(scan_step_by_step, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = result_and_gradients(backbones.selective_scan, inputs)
    for one, wanted in zip(found, expected):
        assert (one - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("batch, margin", [(1, 2.0), (4, 1.25)])
def test_parallel_scan_is_faster_than_step_by_step(batch: int, margin: float, one_thread: None):
    inputs = scan_inputs(batch, 196, 192, 8)
    scans = {"parallel": backbones.selective_scan, "loop": scan_step_by_step}

    def forward(scan: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            scan(*inputs)

    def both_ways(scan: Callable[..., Tensor]) -> None:
        result_and_gradients(scan, inputs)

    for work in (forward, both_ways):
        rounds = [{name: least_seconds(lambda scan=scan: work(scan), 1) for name, scan in scans.items()}  # noqa: B023
                  for _ in range(6)]  # fmt: skip
        least = {name: min(times[name] for times in rounds) for name in scans}
        assert least["parallel"] * margin < least["loop"]


@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_are_faster_than_the_same_in_a_row(reverse: bool, one_thread: None):
    decays, values = torch.rand(1, 196, 8, 192), torch.randn(1, 196, 8, 192)

    def in_a_row() -> None:
        backbones.step_by_step_(decays.unbind(1), values.unbind(1), reverse)

    def in_chunks() -> None:
        backbones.scan_(decays, values, reverse)

    rounds = [(least_seconds(in_chunks, 1), least_seconds(in_a_row, 1)) for _ in range(40)]
    chunks, row = (min(times) for times in zip(*rounds))
    assert 1.15 * chunks < row


# ---------------------------------------------------------------- the kernel of mamba_ssm


class OnCuda(torch.Tensor):
    is_cuda = True


@pytest.fixture(autouse=True)
def no_kernel_of_another_test() -> Iterator[None]:
    backbones.cuda_kernel.cache_clear()
    yield
    backbones.cuda_kernel.cache_clear()


def install_kernel(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor]) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = kernel
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)


def test_the_kernel_is_used_on_cuda_and_given_its_own_layout(monkeypatch: pytest.MonkeyPatch):
    def kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
        """selective_scan_ref of mamba_ssm: u, delta (B, D, L); A (D, N); B, C (B, N, L)."""
        assert D is None and z is None and delta_bias is None and not delta_softplus and not return_last_state
        assert all(tensor.is_contiguous() for tensor in (u, delta, B, C))
        decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
        added = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
        state, outputs = torch.zeros_like(added[:, :, 0]), []
        for t in range(u.shape[2]):
            state = decay[:, :, t] * state + added[:, :, t]
            outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
        calls.append(u.shape)
        return torch.stack(outputs, dim=2)

    calls = []
    install_kernel(monkeypatch, kernel)
    inputs = [tensor.detach() for tensor in scan_inputs(2, 6, 5, 4)]
    y = backbones.selective_scan(*(tensor.as_subclass(OnCuda) for tensor in inputs))
    assert calls == [(2, 5, 6)]
    torch.testing.assert_close(y.as_subclass(Tensor), scan_step_by_step(*inputs))


def test_the_kernel_is_not_used_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    install_kernel(monkeypatch, lambda *_: pytest.fail("the CUDA kernel got CPU tensors"))
    inputs = scan_inputs(2, 6, 5, 4)
    torch.testing.assert_close(backbones.selective_scan(*inputs), scan_step_by_step(*inputs))


def test_without_the_kernel_cuda_takes_the_plain_scan(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)  # import mamba_ssm fails
    assert backbones.cuda_kernel() is None
    inputs = [tensor.detach() for tensor in scan_inputs(2, 6, 5, 4)]
    y = backbones.selective_scan(*(tensor.as_subclass(OnCuda) for tensor in inputs))
    torch.testing.assert_close(y.as_subclass(Tensor), scan_step_by_step(*inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scan_on_cuda():
    inputs = scan_inputs(3, 196, 16, 8)
    expected = result_and_gradients(scan_step_by_step, [tensor.detach().double().requires_grad_() for tensor in inputs])
    x, delta, A, B, C = (tensor.detach().cuda().requires_grad_() for tensor in inputs)
    y = backbones.selective_scan(x, delta, A, B, C)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).cos().float().cuda()
    found = [y, *torch.autograd.grad((y * weights).sum(), [x, delta, A, B, C])]
    for one, wanted in zip(found, expected):
        assert (one.cpu() - wanted).abs().max() < 1e-5 * wanted.abs().max()


# ---------------------------------------------------------------- timm


class Convolutional(nn.Module):
    """Takes every size, and no img_size, as most of timm's convolutional networks."""

    def __init__(self, pretrained: bool, in_chans: int, num_classes: int):
        super().__init__()
        assert not pretrained
        self.convolution = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.convolution(faces).mean((2, 3)))


class Transformer(Convolutional):
    """Must be told img_size, and has patches of 16."""

    def __init__(self, pretrained: bool, in_chans: int, num_classes: int, img_size: int = 224):
        super().__init__(pretrained, in_chans, num_classes)
        if img_size % 16:
            raise AssertionError(f"{img_size} is no multiple of 16")
        self.img_size = img_size

    def forward(self, faces: Tensor) -> Tensor:
        assert faces.shape[2:] == (self.img_size, self.img_size)
        return super().forward(faces)


class Headless(Convolutional):
    def forward(self, faces: Tensor) -> Tensor:
        return self.convolution(faces)


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"convnext_tiny": Convolutional, "vit_tiny": Transformer, "convnext_headless": Headless}
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(
        is_model=models.__contains__,
        list_models=lambda: sorted(models),
        create_model=lambda name, **options: models[name](**options),
    ))  # fmt: skip


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_tiny"])
def test_models_of_timm_by_name(name: str, fake_timm: None):
    model = backbones.build(f"timm:{name}", 24, 1, 80)
    assert model.training
    assert model(torch.rand(2, 1, 80, 80)).shape == (2, 24)


def test_an_unknown_model_of_timm_is_answered_with_near_names(fake_timm: None):
    with pytest.raises(InputError, match="timm has no model convnext_tini; near names: convnext_tiny, convnext_head"):
        backbones.build("timm:convnext_tini")
    with pytest.raises(InputError, match="timm has no model ???; near names: none".replace("?", r"\?")):
        backbones.build("timm:???")


def test_a_size_that_a_model_of_timm_refuses_is_named(fake_timm: None):
    with pytest.raises(InputError, match="timm:vit_tiny does not take faces of 3×100×100 .*multiple of 16"):
        backbones.build("timm:vit_tiny", image_size=100)


def test_a_model_of_timm_that_gives_no_embedding_is_refused(fake_timm: None):
    with pytest.raises(InputError, match=r"timm:convnext_headless gives \(1, 4, 78, 78\) instead of \(1, 24\)"):
        backbones.build("timm:convnext_headless", 24, 3, 80)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm:resnet18 needs timm: pip install timm"):
        backbones.build("timm:resnet18")


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_real_models_of_timm(name: str):
    pytest.importorskip("timm")
    model = backbones.build(f"timm:{name}", 32, 1, 80)
    embeddings = model(torch.rand(4, 1, 80, 80))
    assert embeddings.shape == (4, 32)
    with pytest.raises(InputError, match=f"near names: .*{name[:6]}"):
        backbones.build(f"timm:{name}x")
