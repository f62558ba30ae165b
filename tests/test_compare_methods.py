"""benchmarks/compare_methods.py with a stand-in for the commands, which would train for hours."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import face_recognition
from facekit import backbones
from facekit.files import InputError


@pytest.fixture
def compare_methods() -> ModuleType:
    path = Path(face_recognition.__file__).parent / "benchmarks" / "compare_methods.py"
    spec = importlib.util.spec_from_file_location("compare_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(compare_methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The commands that are run, as {"command": "train", "--name": ...}; cosface is the best on validation people."""
    made = []

    def run_command(*arguments: str | Path) -> str:
        words = [str(word) for word in arguments]
        call = dict(zip(words[1:], [*words[2:], ""])) | {"command": words[0]}
        made.append(call)
        if words[0] == "prepare":
            Path(call["--prepared"]).mkdir(parents=True)
            Path(call["--prepared"], "summary.json").touch()
        if words[0] == "train":
            Path(call["--recogniser"]).write_bytes(bytes(2_000_000))
        values = dict.fromkeys(compare_methods.COLUMNS, 0.5) | {"tar_at_far_0.01": None}
        intervals = {f"{name}_interval": [0.25, 0.75] for name in compare_methods.COLUMNS}
        return json.dumps(values | intervals | {"people": 3, "images": 6, "pairs": 9})

    def load_recogniser(weights: Path) -> SimpleNamespace:
        score = 0.9 if weights.stem == "resnet18-cosface" else 0.8
        return SimpleNamespace(metadata={"measured": {"one_of_eleven_validation": score}})

    monkeypatch.setattr(compare_methods, "run_command", run_command)
    monkeypatch.setattr(compare_methods, "milliseconds_an_image", lambda weights: 12.34)
    monkeypatch.setattr(face_recognition, "load_recogniser", load_recogniser)
    monkeypatch.chdir(tmp_path)
    return made


def test_every_loss_is_trained_and_the_backbones_with_the_best(compare_methods: ModuleType, calls: list,
                                                               tmp_path: Path):  # fmt: skip
    for begun in ("arcface+2", "softmax"):  # softmax is of another comparison, whose results were deleted
        Path(f"outputs/2026-01-01-methods-resnet18-{begun}").mkdir(parents=True)
        Path(f"outputs/2026-01-01-methods-resnet18-{begun}/checkpoint.pt").touch()
    for method in ("arcface", "cosface"):  # cosface has no training to go on with
        Path("methods").mkdir(exist_ok=True)
        Path(f"methods/resnet18-{method}.begun").touch()
    args = Namespace(data=tmp_path, output=Path("methods"), minutes=7)
    assert compare_methods.compare(args) == 0 and not list(Path("methods").glob("*.begun"))
    trained = {call["--name"]: call for call in calls if call["command"] == "train"}
    losses = [f"methods-resnet18-{loss}" for loss in face_recognition.LOSSES]
    assert list(trained) == ["methods-reference", *losses, *(f"methods-{name}-cosface" for name in backbones.BACKBONES)]
    assert {call["--time-limit"] for call in trained.values()} == {"7"}
    assert [name for name, call in trained.items() if "--resume" in call] == ["methods-resnet18-arcface"]
    prepared = [Path(call["--prepared"]).name for call in calls if call["command"] == "prepare"]
    assert prepared == ["faces-80", "faces-112-color"]
    assert Path(trained["methods-mamba-cosface"]["--prepared"]).name == "faces-112-color"

    table = Path("methods/table.md").read_text(encoding="utf-8").splitlines()
    cells = table[2].split(" | ")
    assert cells[0] == "| reference" and cells.count("0.500 [0.250, 0.750]") == 6 and cells.count("–") == 1
    assert cells[-2:] == ["2.0", "12.3 |"]
    assert len(table) == 2 + len(trained) + 2 and "7 minutes of training each" in table[-1]

    calls.clear()
    assert compare_methods.compare(args) == 0 and not calls, "what has been measured is not trained again"
    args.minutes = 8
    with pytest.raises(InputError, match="other --data or --minutes:"):
        compare_methods.compare(args)
