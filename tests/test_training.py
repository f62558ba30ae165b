"""Files written whole, weights, checkpoints, seeds, device, and trainings that are stopped and go on."""

import csv
import json
import math
import os
import pickle
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facekit import training
from facekit.files import InputError, read_json, write_json, written_whole
from facekit.training import bfloat16_is_fast

CPU = torch.device("cpu")
METADATA = {"architecture": "small", "note": "Zoë, 李小龙"}


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # batch norm counts its batches in an integer
    model(torch.randn(5, 3))
    return model


def files_in(folder: Path) -> list[str]:
    """Hidden ones, too."""
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, stop: type[BaseException]):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(stop), written_whole(path) as temporary:
        temporary.write_text("half of the n")
        raise stop
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["notes.txt"]


def test_a_write_replaces_the_file_only_at_its_end(tmp_path: Path):
    path = tmp_path / "new folder" / "picture.png"
    for text in ("first", "second"):
        with written_whole(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".png"
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert files_in(path.parent) == ["picture.png"]


def test_json_comes_back_as_it_was_written(tmp_path: Path):
    value = {"name": "Zoë 李小龙", "numbers": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert "Zoë" in (tmp_path / "value.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b'{"half": ', b"\xff\xfe\x00"])
def test_json_that_is_missing_or_damaged_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"value\.json"):
        read_json(path)


# ---------------------------------------------------------------- seeds, device, precision


def test_a_seed_decides_about_python_numpy_and_torch():
    def numbers(seed: int) -> tuple[float, float, float]:
        training.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  what is tested

    assert numbers(1) == numbers(1)
    assert all(a != b for a, b in zip(numbers(1), numbers(2)))


def test_the_generators_of_a_step_depend_on_its_numbers_alone():
    def numbers(*seeds: int) -> tuple[float, float]:
        numpy_generator, torch_generator = training.step_generators(*seeds)
        return numpy_generator.random(), float(torch.rand((), generator=torch_generator))

    before = numbers(0, 1, 2)
    training.seed_everything(5)
    assert numbers(0, 1, 2) == before
    several = [before, numbers(1, 1, 2), numbers(0, 2, 2), numbers(0, 1, 3), numbers(0, 2, 1)]
    assert len(set(several)) == len({torch_number for _, torch_number in several}) == 5


def test_device_is_chosen_and_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.choose_device("auto") == training.choose_device("cpu") == CPU
    with pytest.raises(InputError, match="--device cpu"):
        training.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.choose_device("auto").type == "cuda"


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_matrix_products(precision: str, dtype: torch.dtype):
    with training.autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert training.describe(CPU, precision).endswith(f"threads), {precision}")


@pytest.mark.parametrize("fast", [True, False])
def test_automatic_precision_is_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool):
    monkeypatch.setattr(training, "bfloat16_is_fast", lambda device: fast)
    assert training.uses_bfloat16(CPU) is fast
    assert training.uses_bfloat16(CPU, "bfloat16") and not training.uses_bfloat16(CPU, "float32")


@pytest.mark.parametrize(("tiles", "products"), [(True, False), (False, True), (False, False)])
def test_bfloat16_is_fast_with_amx_or_avx512_bf16(monkeypatch: pytest.MonkeyPatch, tiles: bool, products: bool):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products, raising=False)
    assert bfloat16_is_fast(CPU) is (tiles or products)


# ---------------------------------------------------------------- weights


def test_weights_are_float16_and_come_back(tmp_path: Path):
    path, model = tmp_path / "new folder" / "small.safetensors", small_model()
    training.save_weights(path, model, METADATA)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118  it is no dict
    assert stored.pop("1.num_batches_tracked") == torch.int64
    assert set(stored.values()) == {torch.float16}

    tensors, metadata = training.read_weights(path, "small")
    assert metadata == METADATA
    loaded = small_model(seed=1)
    training.load_tensors(loaded, tensors, path)
    for name, value in model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[name], expected), name
    assert files_in(path.parent) == ["small.safetensors"]


def test_weights_that_float16_cannot_hold_are_not_written(tmp_path: Path):
    path, model = tmp_path / "small.safetensors", small_model()
    training.save_weights(path, model, METADATA)
    old = path.read_bytes()
    model[0].bias.data[0] = 1e6
    with pytest.raises(InputError, match=r"small\.safetensors was not written: 0\.bias"):
        training.save_weights(path, model, METADATA)
    assert path.read_bytes() == old and files_in(tmp_path) == ["small.safetensors"]


class Evil:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_the_evil_pickle_of_these_tests_works(tmp_path: Path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


BAD_WEIGHTS = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "cut off in its tensors": lambda path: path.write_bytes(path.with_name("good").read_bytes()[:-20]),
    "cut off in its header": lambda path: path.write_bytes(path.with_name("good").read_bytes()[:100]),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Evil(path.with_name("marker")))),
    "torch.save": lambda path: torch.save({"x": Evil(path.with_name("marker"))}, path),
    "without metadata": lambda path: save_file({"x": torch.ones(2)}, path),
    "of another program": lambda path: save_file({"x": torch.ones(2)}, path, {"facekit": "{}"}),
    "with broken metadata": lambda path: save_file({"x": torch.ones(2)}, path, {"facekit": "{"}),
    "of another architecture": lambda path: training.save_weights(path, small_model(), {"architecture": "big"}),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_named_and_run_nothing(tmp_path: Path, kind: str):
    training.save_weights(tmp_path / "good", small_model(), METADATA)
    path = tmp_path / "bad.safetensors"
    BAD_WEIGHTS[kind](path)
    with pytest.raises(InputError, match=r"bad\.safetensors") as raised:
        training.read_weights(path, "small")
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), nn.Linear(3, 4)])
def test_weights_of_other_shapes_or_names_do_not_fit(tmp_path: Path, model: nn.Module):
    path = tmp_path / "small.safetensors"
    training.save_weights(path, small_model(), METADATA)
    tensors, _ = training.read_weights(path, "small")
    with pytest.raises(InputError, match=r"small\.safetensors does not fit"):
        training.load_tensors(model, tensors, path)


def test_digest_tells_files_apart(tmp_path: Path):
    for name, content in {"a": b"same", "b": b"same", "c": b"other"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (training.digest(tmp_path / name) for name in "abc")
    assert a == b == "0967115f2813a3541eaef77de9d9d577"[:16]  # printf same | sha256sum
    assert a != c


# ---------------------------------------------------------------- the optimiser


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_orthogonalised_keeps_directions_and_makes_singular_values_alike(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.logspace(0, -2, min(shape)).double()
    made = u.T @ training.orthogonalised(u * values @ v * 1e-6).double() @ v.T
    off_diagonal = made - made.diag().diag()
    assert off_diagonal.abs().max() < 1e-5
    assert made.diag().min() > 0.6
    assert made.diag().max() < 1.25


def test_orthogonalised_zeros_are_zeros():
    assert not training.orthogonalised(torch.zeros(3, 5)).any()


def layers() -> nn.Sequential:
    """One of each kind that Muon tells apart; no input fits all."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Linear(24, 5))


def four_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(4):
        for parameter in parameters:
            if parameter.requires_grad:
                gradient = torch.randn(parameter.shape, generator=random) + 1
                parameter.grad = torch.empty_like(parameter).copy_(gradient)  # in the same layout, as autograd's
        optimizer.step()


def test_muon_is_that_of_torch_for_matrices():
    muon = getattr(torch.optim, "Muon", None) or pytest.skip("torch has one since 2.9")
    ours, theirs, start = nn.Linear(24, 5), nn.Linear(24, 5, bias=False), torch.randn(5, 24)
    for layer in (ours, theirs):
        layer.weight.data.copy_(start)
    four_steps(training.Muon(ours, 0.01, 0.1), [ours.weight])
    four_steps(muon([theirs.weight], 0.05, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"), [theirs.weight])
    moved = (ours.weight - start).norm()  # by the learning rate; torch's moves by 0.2 of it
    assert 0.02 < moved / 120**0.5 < 0.05
    assert (ours.weight - theirs.weight).norm() < 0.02 * moved  # torch's works in bfloat16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_convolutions_as_matrices_and_leaves_all_else_to_adamw(layout: torch.memory_format):
    ours, adamw = layers().to(memory_format=layout), layers()
    four_steps(training.Muon(ours, 0.01, 0.1), list(ours.parameters()))
    four_steps(torch.optim.AdamW(adamw.parameters(), 0.01, weight_decay=0.1), list(adamw.parameters()))
    same = [name for name, value in ours.named_parameters() if torch.allclose(value, adamw.get_parameter(name))]
    assert same == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias", "4.bias"]
    matrix = nn.Linear(8 * 9, 6)  # the convolution over patches of 8 · 3 · 3 numbers
    matrix.weight.data.copy_(layers()[3].weight.flatten(1))
    optimizer = training.Muon(matrix, 0.01, 0.1)
    random = torch.Generator().manual_seed(2)
    ours, four = layers().to(memory_format=layout), torch.randn(4, 6, 8, 3, 3, generator=random)
    convolution = training.Muon(ours, 0.01, 0.1)
    for gradient in four:
        ours[3].weight.grad, matrix.weight.grad = gradient.clone(), gradient.flatten(1)
        convolution.step()
        optimizer.step()
    torch.testing.assert_close(ours[3].weight.flatten(1), matrix.weight)


def test_muon_goes_on_from_its_saved_state(tmp_path: Path):
    at_once, first, later = layers(), layers(), layers()
    optimizer = training.Muon(at_once, 0.01, 0.1)
    four_steps(optimizer, list(at_once.parameters()))
    four_steps(optimizer, list(at_once.parameters()))
    stopped = training.Muon(first, 0.01, 0.1)
    four_steps(stopped, list(first.parameters()))
    training.save_checkpoint(tmp_path / "c.pt", {"optimizer": stopped.state_dict(), "model": first.state_dict()})
    state = training.load_checkpoint(tmp_path / "c.pt", CPU)
    later.load_state_dict(state["model"])
    resumed = training.Muon(later, 0.5, 0.0)
    resumed.load_state_dict(state["optimizer"])
    four_steps(resumed, list(later.parameters()))
    for name, value in at_once.named_parameters():
        assert torch.equal(value, later.get_parameter(name))


def test_muon_leaves_alone_what_has_no_gradient():
    model = layers()
    model[4].weight.requires_grad_(False)
    four_steps(training.Muon(model, 0.01, 0.1), list(model.parameters()))
    assert torch.equal(model[4].weight, layers()[4].weight)
    assert not torch.equal(model[3].weight, layers()[3].weight)


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back(tmp_path: Path):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "plan": [torch.arange(3)], "history": [{"loss": 0.5}], "step": 3}
    training.save_checkpoint(tmp_path / "new folder" / "checkpoint.pt", state)
    loaded = training.load_checkpoint(tmp_path / "new folder" / "checkpoint.pt", CPU)
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)


BAD_CHECKPOINTS = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "cut off": lambda path: (torch.save({"x": torch.ones(999)}, path), os.truncate(path, 1000)),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Evil(path.with_name("marker")), protocol=2)),
    "with an object": lambda path: torch.save({"x": Evil(path.with_name("marker"))}, path),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_named_and_run_nothing(tmp_path: Path, kind: str):
    BAD_CHECKPOINTS[kind](tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt.*--resume"):
        training.load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert not (tmp_path / "marker").exists()


# ---------------------------------------------------------------- the course of a training


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    seed: int = 0
    init: str | None = None


POINTS = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
TARGETS = POINTS[:, :1] * torch.tensor([1.0, -1.0, 2.0, 0.5])  # (30, 4)
SCORES = {1: 0.5, 2: 0.9, 3: 0.9}  # of the epochs; those that follow have 0.1
STEPS = 9  # three an epoch


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are slow to draw."""
    monkeypatch.setattr(training.charts, "history_chart", lambda rows, path: None)


def new_course(folder: Path, settings: Settings = Settings(), model: nn.Module | None = None) -> training.Course:
    model = model or small_model()
    return training.Course(model, torch.optim.AdamW(model.parameters()), settings, folder)


def batches_of(epoch: int) -> list[Tensor]:
    return list(torch.from_numpy(np.random.default_rng(epoch).permutation(30)).split(10))


def mean_squared_error(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(POINTS[batch]) - TARGETS[batch]).square().mean()


def score_of(epoch: int) -> float | None:
    return SCORES.get(epoch, 0.1)


def train_on(
    course: training.Course,
    minutes: float | None = None,
    each_step: Callable[[], None] = lambda: None,
    score: Callable[[int], float | None] = score_of,
) -> training.Course:
    """As the scripts do it, as far as the course goes; `each_step` is called while a step is done."""
    with course.underway(minutes):
        while course.plan or course.done < 1:
            course.plan = course.plan or batches_of(course.epoch)
            for batch in course.batches():
                each_step()
                course.learn(mean_squared_error(course.model, batch), 0.1 * training.warm_cosine(course.done))
            value = score(course.epoch)
            course.finish_epoch(value, {"validation_accuracy": value})
    return course


def at_step(number: int, happens: Callable[[], object]) -> Callable[[], None]:
    """Something that happens at one call, counted from 1."""
    calls = []

    def each_step() -> None:
        calls.append(number)
        if len(calls) == number:
            happens()

    return each_step


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def cut_power() -> None:
    raise OSError("power cut")


@pytest.fixture
def never_stopped(tmp_path: Path, no_charts: None) -> training.Course:
    return train_on(new_course(tmp_path / "never stopped"))


def checkpoint_of(course: training.Course) -> dict:
    """All tensors and numbers that are saved, but for the time it took."""
    state = training.load_checkpoint(course.folder / "checkpoint.pt", CPU)
    del state["seconds"], state["settings"], state["data"]
    state["history"] = [{name: value for name, value in row.items() if name != "minutes"} for row in state["history"]]
    return state


def assert_same(value: object, expected: object) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_a_course_learns_as_a_plain_loop_does(never_stopped: training.Course):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    losses = {}
    for epoch in (1, 2, 3):
        losses[epoch] = 0.0
        for step, batch in enumerate(batches_of(epoch)):
            optimizer.param_groups[0]["lr"] = 0.1 * training.warm_cosine((epoch - 1 + step / 3) / 3)
            loss = mean_squared_error(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[epoch] += float(loss.detach()) / 3
    assert_same(never_stopped.model.state_dict(), model.state_dict())
    assert [row["epoch"] for row in never_stopped.history] == [1, 2, 3]
    assert [row["loss"] for row in never_stopped.history] == pytest.approx(list(losses.values()), rel=1e-3)
    assert [row["validation_accuracy"] for row in never_stopped.history] == list(SCORES.values())
    assert losses[3] < 0.8 * losses[1]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_ctrl_c_ends_the_step_and_the_rest_follows_later(never_stopped, tmp_path: Path, step: int):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = new_course(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="saved"):
        train_on(stopped, each_step=at_step(step, press_ctrl_c))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (stopped.epoch - 1) * 3 + stopped.step == step

    resumed, steps = new_course(tmp_path, model=small_model(seed=1)), []
    resumed.load()
    train_on(resumed, each_step=lambda: steps.append(resumed.step))
    assert len(steps) == STEPS - step
    assert_same(checkpoint_of(resumed), checkpoint_of(never_stopped))


def test_ctrl_c_in_the_last_step_of_all_leaves_nothing_to_be_done(never_stopped, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt, match="saved"):
        train_on(new_course(tmp_path), each_step=at_step(STEPS, press_ctrl_c))
    resumed = new_course(tmp_path)
    resumed.load()
    train_on(resumed, each_step=lambda: pytest.fail("a step more"))
    assert_same(checkpoint_of(resumed), checkpoint_of(never_stopped))


def test_an_epoch_that_is_resumed_when_the_time_is_over_is_measured(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train_on(new_course(tmp_path), each_step=at_step(2, press_ctrl_c))
    resumed = new_course(tmp_path)
    resumed.load()
    train_on(resumed, minutes=1e-9, each_step=lambda: pytest.fail("a step more"))
    assert (resumed.best_epoch, resumed.best_score, len(resumed.history)) == (1, SCORES[1], 1)


@pytest.mark.parametrize("step", range(4, STEPS + 1))
def test_after_a_power_cut_it_goes_on_from_the_end_of_the_last_epoch(never_stopped, tmp_path: Path, step: int):
    with pytest.raises(OSError, match="power cut"):
        train_on(new_course(tmp_path), each_step=at_step(step, cut_power))
    resumed, steps = new_course(tmp_path, model=small_model(seed=1)), []
    resumed.load()
    train_on(resumed, each_step=lambda: steps.append(resumed.step))
    assert len(steps) == (6 if step <= 6 else 3)
    assert_same(checkpoint_of(resumed), checkpoint_of(never_stopped))


def test_a_finished_training_resumes_to_the_same(never_stopped: training.Course):
    again = new_course(never_stopped.folder, model=small_model(seed=1))
    again.load()
    train_on(again, each_step=cut_power)  # no step is done
    assert again.history == never_stopped.history and again.seconds == never_stopped.seconds
    assert_same(again.take_best().state_dict(), never_stopped.take_best().state_dict())


def test_what_a_course_saves_besides_comes_back(tmp_path: Path):
    class WithMemory(training.Course):
        SAVED = (*training.Course.SAVED, "memory")

    def with_memory(memory: Tensor) -> training.Course:
        model = small_model()
        course = WithMemory(model, torch.optim.AdamW(model.parameters()), Settings(), tmp_path)
        course.memory = memory
        return course

    with_memory(torch.arange(4.0)).save()
    course = with_memory(torch.zeros(4))
    course.load()
    assert_same(course.memory, torch.arange(4.0))
    with pytest.raises(InputError, match="other settings or data"):
        with_memory(torch.zeros(5)).load()


def test_other_data_of_the_same_size_are_not_resumed(never_stopped: training.Course):
    other = new_course(never_stopped.folder)
    other.data = "the digest of other photos"
    with pytest.raises(InputError, match="other settings or data"):
        other.load()


@pytest.mark.parametrize(("scores", "best"), [
    ([0.5, 0.9, 0.4], 2),
    ([0.9, 0.9, 0.9], 3),  # the one that has learnt most
    ([-3.0, -2.0, -1.0], 3),
    ([math.nan, 0.1, math.nan], 2),
    ([math.nan, math.nan, math.nan], None),  # nothing could be measured: the last
])  # fmt: skip
def test_the_best_weights_are_those_of_the_highest_score(tmp_path: Path, no_charts, scores: list, best: int | None):
    course, weights = new_course(tmp_path), []

    def measured(epoch: int) -> float | None:
        weights.append({name: value.clone() for name, value in course.model.state_dict().items()})
        return scores[epoch - 1]

    train_on(course, score=measured)
    assert course.best_epoch == (best or 0)
    assert course.best_score == (scores[best - 1] if best else -math.inf)
    assert_same(dict(course.take_best().state_dict()), weights[(best or 3) - 1])
    assert not torch.equal(weights[0]["0.weight"], weights[1]["0.weight"])


def test_a_score_of_numpy_can_be_resumed_from(tmp_path: Path, no_charts):
    course = train_on(new_course(tmp_path), score=lambda epoch: np.float64(0.25))
    again = new_course(tmp_path)
    again.load()
    assert again.best_score == course.best_score == 0.25


def test_a_time_limit_holds_for_what_is_resumed_without_one(tmp_path: Path, no_charts):
    with pytest.raises(KeyboardInterrupt):
        train_on(new_course(tmp_path), minutes=7.0, each_step=at_step(2, press_ctrl_c))
    for minutes, expected in ((None, 7.0), (9.0, 9.0)):
        resumed = new_course(tmp_path)
        resumed.load()
        with resumed.underway(minutes):
            assert resumed.minutes == expected


def test_weights_to_start_from_are_neither_added_nor_left_out_later(tmp_path: Path):
    def course_from(init: str | None) -> training.Course:
        return new_course(tmp_path, Settings(init=init))

    course_from("one.safetensors").save()
    course_from("moved/one.safetensors").load()
    with pytest.raises(InputError, match="other settings or data"):
        course_from(None).load()
    course_from(None).save()
    with pytest.raises(InputError, match="other settings or data"):
        course_from("one.safetensors").load()


def test_done_goes_by_epochs_and_steps_or_by_time(tmp_path: Path):
    course = new_course(tmp_path, Settings(epochs=10))
    assert course.done == 0
    course.plan, course.epoch, course.step = batches_of(1)[:2], 4, 1
    assert course.done == pytest.approx(0.35)
    course.seconds = 30.0
    with course.underway(minutes=1):
        assert course.done == pytest.approx(0.5)
    with course.underway(minutes=100):
        assert course.done == pytest.approx(0.35)
    with course.underway(minutes=0.25):
        assert course.done == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes only as the test moves it; `now` is in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_time_limit_holds_for_steps_and_validation_together(tmp_path: Path, no_charts, clock):
    """A step takes 6 s, and the validation after three steps 12 s; nine epochs of 30 s would fit by the epochs."""
    course, done = new_course(tmp_path, Settings(epochs=9)), []

    def step() -> None:
        done.append(course.done)
        clock.now += 6

    def validation(epoch: int) -> float:
        clock.now += 12
        return 0.5

    train_on(course, minutes=2, each_step=step, score=validation)
    assert 1120 <= clock.now <= 1120 + 6 + 12
    assert done == sorted(done) and done[0] == 0 and 0.8 < done[-1] < 1
    assert course.done == 1 and [row["epoch"] for row in course.history] == [1, 2, 3, 4]
    assert 2 <= course.history[-1]["minutes"] <= 2.3


def test_a_time_limit_may_end_an_epoch_early_and_leaves_out_the_pause(tmp_path: Path, no_charts, clock):
    def step() -> None:
        clock.now += 6

    stopped, perhaps_stop = new_course(tmp_path, Settings(epochs=999)), at_step(4, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_on(stopped, 1, lambda: (step(), perhaps_stop()))
    assert stopped.seconds == 24
    clock.now += 3600
    resumed, steps = new_course(tmp_path, Settings(epochs=999)), []
    resumed.load()
    train_on(resumed, 1, lambda: steps.append(step()))
    assert len(steps) == 6 and resumed.seconds == 60  # ten steps of 6 s in all
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4]


def test_a_training_without_a_time_limit_takes_all_its_epochs(tmp_path: Path, no_charts, clock):
    def step() -> None:
        clock.now += 86400

    course = train_on(new_course(tmp_path), each_step=step)
    assert len(course.history) == 3 and course.seconds == STEPS * 86400


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it_and_keeps_the_last_good_state(tmp_path: Path, no_charts, value: float):
    course = new_course(tmp_path)

    def spoil() -> None:
        with torch.no_grad():
            course.model[1].bias.fill_(value)

    with pytest.raises(InputError, match=f"became {value} at epoch 2, step 2: lower --learning-rate"):
        train_on(course, each_step=at_step(5, spoil))
    last = training.load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert last["epoch"] == 2 and all(torch.isfinite(value).all() for value in last["model"].values())


def without(path: Path, name: str) -> None:
    state = training.load_checkpoint(path, CPU)
    del state[name]
    torch.save(state, path)


UNFIT_CHECKPOINTS = {
    "missing": lambda path: path.unlink(),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "of another program": lambda path: torch.save({"x": 1}, path),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "without model": lambda path: without(path, "model"),
    "without optimizer": lambda path: without(path, "optimizer"),
    "without plan": lambda path: without(path, "plan"),
}


@pytest.mark.parametrize("kind", UNFIT_CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_not_resumed(tmp_path: Path, kind: str):
    new_course(tmp_path).save()
    UNFIT_CHECKPOINTS[kind](tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt.*--resume"):
        new_course(tmp_path).load()


def test_a_checkpoint_of_other_settings_or_another_model_is_not_resumed(tmp_path: Path):
    new_course(tmp_path).save()
    new_course(tmp_path).load()
    with pytest.raises(InputError, match=r"checkpoint\.pt is of a training with other settings.*--resume"):
        new_course(tmp_path, Settings(seed=1)).load()
    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit"):
        new_course(tmp_path, model=nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))).load()


def test_each_epoch_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture):
    course = train_on(new_course(tmp_path, Settings(epochs=1)), score=lambda epoch: 0.123456)
    out, err = capsys.readouterr()
    loss = course.history[0]["loss"]
    assert out.startswith(f"epoch 1  loss {loss}  validation accuracy 0.1235  minutes ") and out.count("\n") == 1
    assert err == ""  # no progress bar where nobody looks
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) for name, value in row.items()} == course.history[0]
    assert list(row) == ["epoch", "loss", "validation_accuracy", "minutes"]
    assert files_in(tmp_path) == ["checkpoint.pt", "history.csv", "history.png"]


def test_the_learning_rate_rises_then_falls():
    rates = [training.warm_cosine(done) for done in np.linspace(0, 1, 201)]
    highest = int(np.argmax(rates))
    assert 0.04 <= highest / 200 <= 0.06 and rates[highest] == pytest.approx(1, rel=0.01)
    assert rates[: highest + 1] == sorted(rates[: highest + 1])
    assert rates[highest:] == sorted(rates[highest:], reverse=True)
    assert 0 < rates[0] < 0.05 and rates[-1] == pytest.approx(0.01)
    assert rates[100] == pytest.approx(0.505)  # half way down


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_a_training_to_stop_and_the_second_one_ends_it(number: int):
    def ended(signal_number: int, frame: object) -> None:
        raise TimeoutError

    before = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with training.Interruption() as interruption:
            assert not interruption.requested
            signal.raise_signal(number)
            assert interruption.requested
            with pytest.raises(TimeoutError):
                signal.raise_signal(number)
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is ended
        assert not training.Interruption().requested
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


def test_a_loss_that_is_no_number_says_where():
    assert training.check_finite(torch.tensor(0.25, requires_grad=True), "epoch 1") == 0.25
    for value in ("nan", "inf"):
        with pytest.raises(InputError, match=f"{value} at epoch 3, step 7"):
            training.check_finite(torch.tensor(float(value)), "epoch 3, step 7")


def test_history_is_a_csv_row_an_epoch(tmp_path: Path):
    training.write_history(tmp_path / "history.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    assert (tmp_path / "history.csv").read_text().splitlines() == ["epoch,loss", "1,0.5", "2,0.25"]


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluating_needs_no_gradients_and_gives_the_mode_back(was_training: bool):
    model = small_model().train(was_training)
    counted = int(model[1].num_batches_tracked)
    with pytest.raises(ZeroDivisionError), training.evaluating(model):
        assert not model[1].training
        assert not model(torch.randn(2, 3)).requires_grad
        1 / 0  # noqa: B018  an error inside
    assert model.training is model[1].training is was_training
    assert int(model[1].num_batches_tracked) == counted


def test_metadata_are_plain_json(tmp_path: Path):
    training.save_weights(tmp_path / "small.safetensors", small_model(), METADATA)
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["facekit"]) == METADATA
