"""Exported files give what the model gives, in every batch size, and say how to use them."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import face_recognition
from facekit import backbones, export
from facekit.files import InputError

SIZE = 16
PACKAGES = {"onnx": ["onnx", "onnxruntime", "onnxscript"], "torchscript": []}
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}


class Convolutional(nn.Module):
    """Has what the shipped recogniser has: channels_last, batch normalisation, embeddings of length 1."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 6),
        )  # fmt: skip

    def forward(self, faces: Tensor) -> Tensor:
        faces = faces.contiguous(memory_format=torch.channels_last)
        return F.normalize(self.layers(faces), dim=1)


class Recurrent(nn.Module):
    """Reads patches one after the other, as a state-space model does."""

    def __init__(self):
        super().__init__()
        self.patches, self.gate = nn.Conv2d(1, 6, 8, stride=8), nn.Linear(6, 6)

    def forward(self, faces: Tensor) -> Tensor:
        tokens = self.patches(faces).flatten(2).transpose(1, 2)  # (B, T, 6)
        gates = self.gate(tokens).sigmoid()
        state = torch.zeros_like(tokens[:, 0])
        for time in range(tokens.shape[1]):
            state = gates[:, time] * state + tokens[:, time]
        return state


def a_model(kind: type[nn.Module] = Convolutional) -> nn.Module:
    """In training mode, with statistics that differ from those of any batch."""
    torch.manual_seed(0)
    model = kind().train()
    model(torch.rand(8, 1, SIZE, SIZE) * 5)
    return model


@pytest.fixture(scope="module")
def crops(faces) -> Tensor:
    """Five drawn faces (5, 1, 16, 16) in 0..1."""
    return F.interpolate(torch.from_numpy(faces.images[:5]).float() / 255, size=SIZE, mode="area")


@pytest.fixture(params=sorted(export.EXPORTS))
def export_format(request) -> str:
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return request.param


@pytest.mark.parametrize("kind", [Convolutional, Recurrent])
def test_the_file_agrees_with_the_model_and_leaves_it_alone(tmp_path, crops, export_format, kind):
    model, path = a_model(kind), tmp_path / f"model{SUFFIXES[export_format]}"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metadata = {"preprocessing": "Größe 16×16\nsecond line", "architecture": "small"}
    with warnings.catch_warnings():
        for kind_of_warning in (UserWarning, FutureWarning, torch.jit.TracerWarning):
            warnings.simplefilter("error", kind_of_warning)
        export.EXPORTS[export_format](model, path, metadata, channels=1, image_size=SIZE)
    assert export.check_export(model, path, crops) < 1e-5
    run, found = export.open_export(path)
    assert found == metadata
    with torch.no_grad():
        torch.testing.assert_close(run(crops), model.eval()(crops))  # evaluation mode is in the file
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # the weights are inside
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_export_does_not_change_the_mode(tmp_path):
    model = a_model()
    export.export_torchscript(model, tmp_path / "model.pt", {}, channels=1, image_size=SIZE)
    assert model.training and model.layers[1].training


def test_onnx_of_plain_onnxruntime(tmp_path, crops):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    export.export_onnx(a_model(), path, {"colour": "greyscale"}, channels=1, image_size=SIZE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"colour": "greyscale"}
    assert session.get_inputs()[0].shape[1:] == [1, SIZE, SIZE]
    for count in (1, 2, 3, 5):
        [embeddings] = session.run(None, {"faces": crops[:count].numpy()})
        assert embeddings.shape == (count, 6) and embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert __file__.encode() not in path.read_bytes()  # nothing about the computer it was made on


def test_check_finds_a_difference_in_a_single_number(tmp_path, crops):
    model, path = a_model(Recurrent), tmp_path / "model.pt"
    export.export_torchscript(model, path, {}, channels=1, image_size=SIZE)
    assert export.check_export(Shifted(model, crops[3]), path, crops) == pytest.approx(0.25, abs=1e-4)


class Shifted(nn.Module):
    """Adds 0.25 to one number of the embedding of one face."""

    def __init__(self, model: nn.Module, face: Tensor):
        super().__init__()
        self.model, self.face = model, face

    def forward(self, faces: Tensor) -> Tensor:
        embeddings = self.model(faces).clone()
        embeddings[(faces == self.face).all(dim=(1, 2, 3)), 2] += 0.25
        return embeddings


class Spoilt(nn.Module):
    """The batch size of the example is part of it: tracing keeps numbers that Python computed."""

    def forward(self, faces: Tensor) -> Tensor:
        return faces.flatten()[: 6 * int(len(faces))].reshape(int(len(faces)), 6)


def test_check_refuses_a_fixed_batch(tmp_path, crops):
    path = tmp_path / "model.pt"
    export.export_torchscript(Spoilt(), path, {}, channels=1, image_size=SIZE)
    with pytest.raises(InputError, match=r"model\.pt"):
        export.check_export(Spoilt(), path, crops)


def test_check_sees_numbers_that_are_none(tmp_path, crops):
    model, path = a_model(Recurrent), tmp_path / "model.pt"
    model.gate.bias.data[0] = torch.nan
    export.export_torchscript(model, path, {}, channels=1, image_size=SIZE)
    assert np.isnan(export.check_export(model, path, crops))


@pytest.mark.parametrize("name", ["model.pt", "model.onnx"])
def test_missing_and_damaged_files(tmp_path, name, crops):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=rf"{name} is missing"):
        export.open_export(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=rf"{name} is no model"):
        export.check_export(a_model(), tmp_path / name, crops)


def test_check_without_faces(tmp_path, crops):
    with pytest.raises(InputError, match="face"):
        export.check_export(a_model(), tmp_path / "model.pt", crops[:0])


def test_missing_packages_are_named(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match="pip install onnx onnxruntime onnxscript"):
        export.export_onnx(a_model(), path, {}, channels=1, image_size=SIZE)
    assert not path.exists()
    path.write_bytes(b"anything")
    with pytest.raises(InputError, match="pip install onnx onnxruntime onnxscript"):
        export.open_export(path)


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        export.export_torchscript(a_model(), path, {"size": object()}, channels=1, image_size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"] and path.read_bytes() == b"old"


def test_description_is_text_that_a_stranger_can_follow():
    crop = {"left_eye": [0.31, 0.46], "right_eye": [0.65, 0.46]}
    grey = export.describe("resnet18-256-128-32", 1, 80, 32, True, crop)
    colour = export.describe("mobilefacenet", 3, 112, 128, False, crop)
    assert all(isinstance(value, str) for value in [*grey.values(), *colour.values()])
    assert "left eye at x 24.8, y 36.8" in grey["preprocessing"]  # 0.31 * 80, 0.46 * 80
    assert "right eye at x 72.8, y 51.5" in colour["preprocessing"]  # 0.65 * 112, 0.46 * 112
    assert "0.299 R" in grey["preprocessing"] and "0.299 R" not in colour["preprocessing"]
    assert "(B, 3, 112, 112)" in colour["preprocessing"] and "(B, 128)" in colour["preprocessing"]
    assert grey["colour"] == "greyscale" and colour["colour"] == "RGB"
    assert "length 1" in grey["output"] and "length 1" not in colour["output"]


@pytest.mark.parametrize("form", sorted(export.EXPORTS))
@pytest.mark.parametrize("backbone", sorted(backbones.BACKBONES))
def test_every_backbone_is_exported_for_any_number_of_faces(backbone: str, form: str, tmp_path: Path):
    size = 32
    model = face_recognition.Recogniser(backbone, embedding_size=16, image_size=size, color=True).eval()
    path = tmp_path / f"model.{form}"
    export.EXPORTS[form](model, path, {"colour": "RGB"}, channels=3, image_size=size)
    for count in (1, 3):
        assert export.check_export(model, path, torch.rand(count, 3, size, size)) < 1e-5
