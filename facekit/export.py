"""A trained recogniser as one file for other programs: ONNX or TorchScript, checked against PyTorch.

Both files take faces (B, C, S, S), float32 in 0..1, for any B, and return embeddings (B, D). Their metadata say how
to make such faces from a photo.
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facekit.files import InputError, written_whole

METADATA_FILE = "metadata.json"  # inside the TorchScript file


def describe(
    architecture: str, channels: int, image_size: int, embedding_size: int, normalised: bool, crop: Mapping[str, Any]
) -> dict[str, str]:
    """The metadata of an exported file, which are all that somebody needs who has nothing but the file.

    channels    1 for greyscale, 3 for RGB; `normalised`: whether embeddings have length 1.
    crop        `left_eye` and `right_eye`: [x, y] in 0..1 of the crop's width and height, the viewer's left.
    """
    size, (left, right) = image_size, (crop["left_eye"], crop["right_eye"])
    colour = "greyscale, 0.299 R + 0.587 G + 0.114 B" if channels == 1 else "RGB, in this order"
    similarity = "their dot product is the cosine of their angle" if normalised else "compare their Euclidean distance"
    eyes = " and ".join(
        f"the {side} eye at x {x * size:.1f}, y {y * size:.1f}" for side, (x, y) in [("left", left), ("right", right)]
    )
    steps = [
        "Turn the photo upright (EXIF orientation) and find the face.",
        f"Rotate, scale and shift the photo without stretching it, so that a picture of {size} x {size} pixels has "
        f"{eyes}, in pixels from its top left corner, left as the viewer sees it. A crop that shows the face so, but "
        f"has another size: scale it until its longer side is {size} pixels (bilinear, antialiased), and pad it with "
        "black (0) on both sides to a square.",
        f"Colours: {colour}.",
        f"Divide the 8-bit values by 255, subtract nothing: float32 in 0..1, shape (B, {channels}, {size}, {size}).",
        f"The result, shape (B, {embedding_size}), has one embedding a face; {similarity}.",
    ]
    return {
        "architecture": architecture,
        "input": f"faces: float32 (B, {channels}, {size}, {size}), B is free",
        "output": f"embeddings: float32 (B, {embedding_size})" + (", of length 1" if normalised else ""),
        "colour": "greyscale" if channels == 1 else "RGB",
        "image_size": str(size),
        "value_range": "0..1",
        "padding": "black, to a square, centred",
        "left_eye": json.dumps(left),
        "right_eye": json.dumps(right),
        "embedding_size": str(embedding_size),
        "normalised": json.dumps(normalised),
        "preprocessing": "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
    }


def export_onnx(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str], channels: int, image_size: int
) -> None:
    """Writes one ONNX file with the weights inside, input `faces` and output `embeddings`; the model stays as it is.

    InputError when the packages for it are missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  PyTorch's exporter needs it
    except ImportError:
        raise _packages_missing(path) from None
    with torch.no_grad(), _without_advice(), written_whole(path) as temporary:
        torch.onnx.export(
            _for_export(model),
            (torch.zeros(2, channels, image_size, image_size),),  # not 1 face, which would be taken for a constant
            str(temporary),
            input_names=["faces"],
            output_names=["embeddings"],
            # Not dynamic_shapes: only the exporter of PyTorch 2.9 and later knows it, and that one reads this too.
            dynamic_axes={"faces": {0: "batch"}, "embeddings": {0: "batch"}},
            external_data=False,
            verbose=False,
        )
        exported = onnx.load(temporary)
        onnx.helper.set_model_props(exported, dict(metadata))
        for node in exported.graph.node:
            del node.metadata_props[:]  # the names of source files on this computer
        onnx.save(exported, temporary)


def export_torchscript(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str], channels: int, image_size: int
) -> None:
    """Writes a TorchScript file, which Python and C++ (libtorch) load without our code; the model stays as it is.

    PyTorch keeps the names of the source files on this computer in it.
    """
    with torch.no_grad(), _without_advice():
        # The example is kept in the file: no photo of anybody.
        traced = torch.jit.trace(_for_export(model), torch.zeros(2, channels, image_size, image_size))
        with written_whole(path) as temporary:
            torch.jit.save(traced, str(temporary), _extra_files={METADATA_FILE: json.dumps(dict(metadata), indent=1)})


EXPORTS = {"onnx": export_onnx, "torchscript": export_torchscript}


def open_export(path: str | Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """An exported model as a function, faces (B, C, S, S) float32 -> embeddings (B, D), and its metadata.

    A file named .onnx runs in onnxruntime, any other is TorchScript. InputError when it is missing or damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is missing: export it first.")
    try:
        return _open_onnx(path) if Path(path).suffix == ".onnx" else _open_torchscript(path)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  onnxruntime has no common class for its errors
        raise InputError(f"{path} is no model that was exported ({_first_line(error)}): export it again.") from None


def check_export(model: nn.Module, path: str | Path, faces: Tensor) -> float:
    """The largest absolute difference between the file's embeddings and the model's, over batches of 1, 2 and all.

    faces (B, C, S, S), float32 in 0..1; real ones, as noise can agree where faces do not. The model itself runs
    one face at a time. InputError when the file refuses a batch or returns another number of embeddings.
    """
    if not len(faces):
        raise InputError(f"{path} cannot be checked without a face: give photos.")
    run, _ = open_export(path)
    reference, faces = _for_export(model), faces.float().cpu()
    with torch.no_grad():
        expected = torch.cat([reference(face[None]) for face in faces])  # (B, D)
    differences = []
    for batch_size in (1, 2, len(faces)):
        try:
            found = torch.cat([run(batch) for batch in faces.split(batch_size)])
        except Exception as error:  # noqa: BLE001  as above
            reason = _first_line(error)
            raise InputError(f"{path} cannot be used: it fails for {batch_size} faces ({reason}).") from None
        if found.shape != expected.shape:
            raise InputError(f"{path} cannot be used: it turns {len(faces)} faces, {batch_size} at a time, into "
                             f"{tuple(found.shape)}, and the model into {tuple(expected.shape)}.")  # fmt: skip
        differences.append((found - expected).abs())
    return torch.cat(differences).max().item()


def _for_export(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, without dropout; batch normalisation uses what it learnt."""
    return copy.deepcopy(model).cpu().float().eval()


def _open_onnx(path: str | Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    try:
        import onnxruntime
    except ImportError:
        raise _packages_missing(path) from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(faces: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embeddings"], {"faces": faces.numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map


def _open_torchscript(path: str | Path) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    extra_files = {METADATA_FILE: ""}
    with _without_advice():
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra_files)
    return torch.no_grad()(module), json.loads(extra_files[METADATA_FILE])


def _packages_missing(path: str | Path) -> InputError:
    return InputError(f"{path} needs packages that are not installed: `pip install onnx onnxruntime onnxscript`.")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences what PyTorch says about its older ways to export, and doubts that check_export settles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=".*'dynamic_axes' is not recommended")
        yield
