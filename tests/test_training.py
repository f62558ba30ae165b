"""Files written whole, weights, checkpoints, seeds, device, and stopping between two steps."""

import json
import os
import pickle
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from facekit import training
from facekit.files import InputError, read_json, write_json, written_whole

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
