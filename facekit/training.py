"""What every training needs: seeds, device and precision, weights, and a course that can be stopped and resumed."""

import contextlib
import hashlib
import json
import math
import random
import signal
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from facekit import charts
from facekit.files import InputError, write_csv, written_whole

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
    numpy_generator = np.random.default_rng([len(seeds), *seeds])  # as [a, b] and [a, b, 0] seed alike
    torch_generator = torch.Generator().manual_seed(int(numpy_generator.integers(2**62)))
    torch.manual_seed(int(torch_generator.initial_seed()))  # for what takes no generator: dropout, random margins
    return numpy_generator, torch_generator


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA when there is a usable GPU, else the CPU. InputError when `cuda` is asked for in vain."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no usable NVIDIA GPU; use --device cpu or auto.")
    return torch.device(name)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 runs in hardware: Ampere GPUs and later, processors with AMX tiles or AVX-512 BF16.

    Measured on ResNet18: 1.6 times the speed of float32 with AVX-512 BF16 (Zen 4), half of it where a processor has to
    emulate it (Cascade Lake).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(test() for test in tests if test)


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
        temporary.write_bytes(save(tensors, {"facekit": json.dumps(metadata)}))


def read_weights(path: str | Path, *architectures: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, as float32, and the metadata of a file that `save_weights` wrote.

    InputError when it is missing or damaged, or when its architecture has none of these names, or beginnings of names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["facekit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except FileNotFoundError:
        raise InputError(f"{path} is missing: train it first, or run this in the project's folder, where the published "
                         "weights are.") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a weights file of this project ({error}): train it again.") from None
    found = str(metadata.get("architecture", "something else"))
    if not found.startswith(architectures):
        raise InputError(f"{path} holds {found}, not {' or '.join(architectures)}: name the right file.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, metadata


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256, to tell which weights others were trained for."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def array_digest(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits that change with any number, and with their order."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()[:16]


def model_digest(model: nn.Module) -> str:
    """16 hexadecimal digits that change with any of the model's numbers."""
    content = hashlib.sha256()
    for name, value in model.state_dict().items():
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def load_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Puts tensors into a model. InputError when names or shapes do not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[1], 200, placeholder=" ...")
        raise InputError(f"{path} does not fit the model: {reason} Name other weights, or train it again.") from None


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, lists and dicts: all that a training needs to go on."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path, device: torch.device) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; nothing in the file can run code."""
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: there is no training to resume; leave out --resume.") from None
    except (OSError, MemoryError, torch.OutOfMemoryError):  # the file may be whole
        raise
    except Exception as error:  # torch.load raises many kinds of errors for damaged files
        raise InputError(f"{path} cannot be resumed from ({type(error).__name__}): start without --resume.") from None


# ---------------------------------------------------------------- the optimiser


class Muon(torch.optim.AdamW):
    """The matrices of linear layers and convolutions learn by Muon, all other weights by AdamW.

    A gradient says much about a few directions of its matrix, and next to nothing about most. Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/) follows the running mean of the gradients, too, but with all singular
    values made alike: every direction is learnt at once. Each weight moves by the learning rate, in the root mean
    square, as with AdamW. Convolutions that see 3 channels or fewer are left to AdamW: they have few directions.
    """

    MOMENTUM = 0.95

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float):
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        matrices = {id(layer.weight): layer.weight for layer in layers if layer.weight.shape[1] > 3}
        others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
        groups = [{"params": others}, {"params": list(matrices.values())}]
        super().__init__(groups, learning_rate, weight_decay=weight_decay, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # that of AdamW expects its own state of every weight

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        group = self.param_groups[1]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            if not self.state[weight]:
                self.state[weight]["mean"] = torch.zeros_like(weight)
            mean = self.state[weight]["mean"].lerp_(weight.grad, 1 - self.MOMENTUM)
            ahead = weight.grad.lerp(mean, self.MOMENTUM).flatten(1)  # (R, C), where the mean will be (Nesterov)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(orthogonalised(ahead).reshape(weight.shape), alpha=group["lr"] * max(ahead.shape) ** 0.5)
            weight.grad = None  # which AdamW leaves alone
        super().step(closure)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """(R, C) -> the same with its singular values made alike, 0.7 to 1.2; those below 1/500 of its norm stay smaller.

    Five Newton-Schulz steps with the factors of Jordan et al. 2024: each makes 3.4445 s - 4.775 s³ + 2.0315 s⁵ of a
    singular value s. The steps are taken on the small matrix of s², and all applied at once to the large one.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    squares = wide @ wide.T  # (r, r) of singular values s²
    all_steps = one = torch.eye(len(squares)).to(squares)
    for _ in range(5):
        step = 3.4445 * one - 4.775 * squares + 2.0315 * squares @ squares
        all_steps, squares = step @ all_steps, step @ squares @ step
    wide = all_steps @ wide
    return wide if wide.shape == matrix.shape else wide.T


# ---------------------------------------------------------------- the course of a training


class Course:
    """A training on its way: model, optimiser, counters. Saved whole, it goes on as if it had never stopped.

        with course.underway(minutes):
            while course.plan or course.done < 1:                    # a plan: of an epoch that is resumed
                course.plan = course.plan or plan_epoch(course)      # a list of batches
                for batch in course.batches():
                    course.learn(loss(batch), rate)
                course.finish_epoch(score, {"validation_accuracy": score})

    `settings` are a dataclass with `epochs`; they are compared when a checkpoint is loaded. The weights of the epoch
    with the highest score are kept. `SAVED` names what a checkpoint holds beside model and optimiser.
    """

    SAVED: tuple[str, ...] = ("epoch", "step", "seconds", "minutes", "plan", "best_score", "best_epoch",
                              "best_weights", "history", "losses")  # fmt: skip

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Any, folder: Path):
        self.model, self.optimizer, self.settings, self.folder = model, optimizer, settings, Path(folder)
        self.device = next(model.parameters()).device
        self.minutes: float | None = None
        self.epoch, self.step, self.seconds = 1, 0, 0.0  # what is to be done next, and the time it took so far
        self.plan: list[torch.Tensor] = []  # the batches of the present epoch
        self.best_score, self.best_epoch, self.best_weights = -math.inf, 0, {}
        self.history: list[dict[str, Any]] = []
        self.losses = 0.0  # sum over the present epoch
        self.events: Any = None  # a SummaryWriter of TensorBoard, to watch the training there
        self.data = ""  # the digest of what is trained on
        self.drawn = 0.0  # when the chart of the history was

    @property
    def done(self) -> float:
        """The part of the training that lies behind, 0..1: by epochs, or by time where that ends it sooner."""
        by_epochs = (self.epoch - 1 + self.step / max(1, len(self.plan))) / self.settings.epochs
        return min(1.0, max(by_epochs, self.seconds / 60 / self.minutes if self.minutes else 0.0))

    @contextlib.contextmanager
    def underway(self, minutes: float | None = None) -> Iterator[None]:
        """Ctrl-C ends a step before it stops the training; `minutes` fits the training into that time [that of
        the training that is resumed]."""
        self.drawn = time.monotonic()
        self.minutes, self.started = minutes or self.minutes, self.drawn - self.seconds
        with Interruption() as self.interruption:
            try:
                yield
                if self.interruption.requested:  # during the last step or validation
                    raise KeyboardInterrupt("saved")
            finally:
                self.draw_history()

    def batches(self) -> Iterator[torch.Tensor]:
        """The batches of the plan that are still to be done. After Ctrl-C all is saved and KeyboardInterrupt raised,
        with an argument; the one of a second Ctrl-C has none."""
        for batch in tqdm(self.plan[self.step :], f"epoch {self.epoch}", leave=False, disable=None):
            if self.interruption.requested:
                self.save()
                raise KeyboardInterrupt("saved")
            if self.done == 1:
                break
            yield batch.to(self.device)
            self.step += 1
            self.seconds = time.monotonic() - self.started

    def learn(self, loss: torch.Tensor, rate: float) -> None:
        """One step of the optimiser at the learning rate `rate`. InputError when the loss is not finite."""
        self.losses += check_finite(loss, f"epoch {self.epoch}, step {self.step + 1}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def finish_epoch(self, score: float, row: dict[str, Any]) -> None:
        """Keeps the weights if no score was higher; saves checkpoint.pt and history.csv, prints the epoch."""
        self.seconds = time.monotonic() - self.started  # the validation takes time, too
        if score >= self.best_score:  # of equal ones the last has learnt most
            self.best_score, self.best_epoch = float(score), self.epoch
            self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        row = {"epoch": self.epoch, "loss": self.losses / max(1, self.step)} | row | {"minutes": self.seconds / 60}
        self.history.append({name: _rounded(value) for name, value in row.items()})
        if self.events:
            for name, value in row.items():
                self.events.add_scalar(name, value, self.epoch)
        self.epoch, self.step, self.losses, self.plan = self.epoch + 1, 0, 0.0, []
        self.save()
        write_history(self.folder / "history.csv", self.history)
        print("  ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.history[-1].items()), flush=True)
        if time.monotonic() - self.drawn > 20:  # epochs may take less than the chart
            self.draw_history()

    def draw_history(self) -> None:
        if self.history:
            charts.history_chart(self.history, self.folder / "history.png")
        self.drawn = time.monotonic()

    def take_best(self) -> nn.Module:
        """The model with the weights of the best epoch."""
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)
        return self.model

    def save(self) -> None:
        state = {name: getattr(self, name) for name in self.SAVED}
        state |= {"settings": self._what_it_learns(), "data": self.data}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self.folder / "checkpoint.pt", state)

    def _what_it_learns(self) -> str:
        """The settings, less the files of weights that it begins with or learns from: these may have been moved."""
        settings = asdict(self.settings)
        if settings.get("init"):
            settings["init"] = "weights"
        settings.pop("teacher", None)  # `data` knows which one
        return repr(settings)

    def load(self) -> None:
        """InputError when there is no checkpoint, or one of other settings or data."""
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path, self.device)
        whole = state.keys() >= {*self.SAVED, "settings", "data", "model", "optimizer"}
        tensors = [name for name in self.SAVED if torch.is_tensor(getattr(self, name))]
        same = whole and (state["settings"], state["data"]) == (self._what_it_learns(), self.data)
        fits = same and all(state[name].shape == getattr(self, name).shape for name in tensors)
        if not fits:
            raise InputError(f"{path} is of a training with other settings or data: use the same, or drop --resume.")
        load_tensors(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self.SAVED:
            setattr(self, name, state[name])


def event_writer(folder: Path | None) -> Any:
    """A writer of events that `tensorboard --logdir FOLDER` shows; None without a folder."""
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package of this name: pip install tensorboard") from None
    return SummaryWriter(folder)


def warm_cosine(done: float) -> float:
    """Part of the highest learning rate: up in the first 5 % of the training, then down a half cosine to 1 %."""
    return min(1.0, done / 0.05 + 0.02) * (0.505 + 0.495 * math.cos(math.pi * done))


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


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


def check_finite(loss: torch.Tensor, where: str,
                 advice: str = "lower --learning-rate, or use --precision float32") -> float:  # fmt: skip
    """The loss as a number. InputError when it is NaN or infinite: nothing that follows could be used."""
    value = float(loss.detach())
    if not np.isfinite(value):
        raise InputError(f"The loss became {value} at {where}: {advice}.")
    return value


def write_history(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes one CSV row an epoch; the columns are those of the first row."""
    write_csv(path, [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])


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

