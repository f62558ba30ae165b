"""What every training needs: seeds, device and precision, weights and checkpoints, interruption, history."""

import contextlib
import csv
import hashlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from facekit.files import InputError, written_whole

# ---------------------------------------------------------------- seeds, device, precision


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and CUDA) together."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for libraries that use the global generator
    torch.manual_seed(seed)


def step_generators(*seeds: int) -> tuple[np.random.Generator, torch.Generator]:
    """Random generators that depend on `seeds` (say: seed, epoch, step) alone.

    A training that draws each step from its own generators needs no saved random state to be resumed exactly.
    """
    numpy_generator = np.random.default_rng(seeds)
    torch_generator = torch.Generator().manual_seed(int(numpy_generator.integers(2**62)))
    return numpy_generator, torch_generator


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA when there is a usable GPU, else the CPU. InputError when `cuda` is asked for in vain."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no usable NVIDIA GPU; use --device cpu or auto.")
    return torch.device(name)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 runs in hardware: Ampere GPUs and later, processors with AMX tiles.

    Without AMX the bfloat16 of a processor is emulated: measured at half the speed of float32 on Cascade Lake.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(amx and amx())


def uses_bfloat16(device: torch.device, precision: str = "auto") -> bool:
    """Precision is `bfloat16`, `float32`, or `auto`: bfloat16 where it is fast."""
    return precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device))


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """The context in which models run: matrix products in bfloat16 where `precision` wants it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device, precision))


def describe(device: torch.device, precision: str = "auto") -> str:
    """For example `cpu (2 threads), float32`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    return f"{name}, {'bfloat16' if uses_bfloat16(device, precision) else 'float32'}"


# ---------------------------------------------------------------- weights and checkpoints


def save_weights(path: str | Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes the model's tensors as float16 safetensors; `metadata` (plain JSON values) must rebuild the model."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path} was not written: {name} is not finite in float16; lower --learning-rate.")
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, {"facekit": json.dumps(metadata, ensure_ascii=False)}))


def read_weights(path: str | Path, architecture: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, as float32, and the metadata of a file that `save_weights` wrote.

    InputError when it is missing or damaged, or when its metadata name another architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["facekit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except FileNotFoundError:
        raise InputError(f"{path} is missing: train it first, or get the published weights.") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a weights file of this project ({error}): train it again.") from None
    found = metadata.get("architecture", "something else")
    if found != architecture:
        raise InputError(f"{path} holds {found}, not {architecture}: name the right file.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, metadata


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256, to tell which weights others were trained for."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def load_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Puts tensors into a model. InputError when names or shapes do not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model: {str(error).splitlines()[1].strip()}") from None


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, lists and dicts: all that a training needs to go on."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path, device: torch.device) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; nothing in the file can run code."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: there is no training to resume; leave out --resume.") from None
    except Exception as error:  # torch.load raises many kinds of errors for damaged files
        raise InputError(f"{path} cannot be resumed from ({type(error).__name__}): start without --resume.") from None


# ---------------------------------------------------------------- the course of a training


class Interruption:
    """Turns Ctrl-C and SIGTERM into a flag, so that a training stops between two steps and not inside one.

    A second Ctrl-C ends the program at once.
    """

    requested = False

    def __enter__(self) -> "Interruption":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def check_finite(loss: torch.Tensor, where: str) -> float:
    """The loss as a number. InputError when it is NaN or infinite: nothing that follows could be used."""
    value = float(loss.detach())
    if not np.isfinite(value):
        raise InputError(f"The loss became {value} at {where}: lower --learning-rate, or use --precision float32.")
    return value


def write_history(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes one CSV row an epoch; the columns are those of the first row."""
    with written_whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients; afterwards in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(was_training)

