"""Trains every loss and every backbone for the same time, and writes a table of what they reach on the same people.

    python3 benchmarks/compare_methods.py --data FOLDER --minutes 20

FOLDER/PERSON/photo.jpg as for `face_recognition.py prepare`. First the reference method and every loss with the
backbone resnet18, then every other backbone with the loss that was best for validation people. One method after the
other; stopped, the same command goes on. Weights, reports and table.md are in outputs/methods/; each training has its
own folder in outputs/.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import face_recognition
from facekit import backbones, commands, training
from facekit.files import InputError, read_json, write_json, write_text

SCRIPT = Path(face_recognition.__file__)
COLUMNS = {  # of the report: as the table calls it
    "accuracy": "pairs right (ten folds)", "roc_auc": "ROC AUC", "tar_at_far_0.01": "TAR@FAR 1 %",
    "one_of_eleven": "1 of 11", "recall_at_1": "Recall@1", "r_precision": "R-Precision", "map_at_r": "MAP@R",
}  # fmt: skip


def run_command(*arguments: str | Path) -> str:
    """What a command of face_recognition.py prints. A failed one ends this program; so does Ctrl-C, after saving."""
    with training.Interruption() as stop:  # the command gets Ctrl-C, too: let it save
        done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode or stop.requested:
        print("Stopped. The same command goes on." if stop.requested else done.stdout)
        sys.exit(done.returncode or 130)
    return done.stdout


def measured(method: str, switches: list[str], args: argparse.Namespace, crops: str = "faces-80") -> dict:
    """The report of a method; trained and measured unless that has been done."""
    report, begun = args.output / f"{method}.json", args.output / f"{method}.begun"
    if not report.exists():
        print(f"{method}: {args.minutes:g} minutes from {time.strftime('%H:%M')} on", flush=True)
        weights = args.output / f"{method}.safetensors"
        name = f"{args.output.name}-{method}"
        last = str(commands.last_run(name) or "")
        if not begun.exists():
            write_text(begun, last)  # a training of another comparison
        resume = ["--resume", last] * (last not in ("", begun.read_text(encoding="utf-8")))
        made = "--prepared", args.output / crops, "--recogniser", weights
        if not (args.output / crops / "summary.json").exists():
            colour = ["--image-size", 112, "--color"] * crops.endswith("color")
            run_command("prepare", "--data", args.data, "--prepared", args.output / crops, *colour)
        run_command("train", *made, "--name", name, *switches,
                    "--time-limit", args.minutes, "--epochs", 10_000, *resume)  # fmt: skip
        run_command("train-verify", *made)
        printed = run_command("evaluate", *made, "--json", "--charts", args.output / f"{method}-charts")
        chosen_by = face_recognition.load_recogniser(weights).metadata["measured"]["one_of_eleven_validation"]
        costs = {"megabytes": weights.stat().st_size / 1e6, "milliseconds": milliseconds_an_image(weights)}
        write_json(report, json.loads(printed) | costs | {"validation": chosen_by})
        begun.unlink()
    return read_json(report)


def milliseconds_an_image(weights: Path) -> float:
    """The median time to embed one face."""
    model = face_recognition.load_recogniser(weights)
    face = np.zeros((1, 3 if model.color else 1, model.image_size, model.image_size), np.uint8)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        face_recognition.embed(model, face)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def write_table(reports: dict[str, dict], args: argparse.Namespace) -> None:
    heads = ["method", *COLUMNS.values(), "MB", "ms a face"]
    lines = [heads, ["---"] * len(heads)]
    for method, report in reports.items():
        cells = [with_interval(report[name], report[f"{name}_interval"]) for name in COLUMNS]
        lines.append([method, *cells, f"{report['megabytes']:.1f}", f"{report['milliseconds']:.1f}"])
    counts = next(iter(reports.values()))
    machine = training.describe(training.choose_device())
    about = (f"{args.minutes:g} minutes of training each on {machine}; {counts['people']} people, {counts['images']} "
             f"images, {counts['pairs']} pairs; in brackets 95 % intervals, by resampling people")  # fmt: skip
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}\n"
    write_text(args.output / "table.md", text)
    print(text, flush=True)


def with_interval(value: float | None, interval: list[float] | None) -> str:
    """0.968 [0.962, 0.975]; a dash where there are too few pairs."""
    return "–" if value is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def compare(args: argparse.Namespace) -> int:
    if not args.data.is_dir():
        raise InputError(f"{args.data} is not a folder: give one with one folder of photos per person.")
    task = {"minutes": args.minutes, "data": str(args.data.resolve())}
    known = args.output / "task.json"
    if (read_json(known) if known.exists() else task) != task or not known.exists() and any(args.output.glob("*.json")):
        raise InputError(f"{args.output} is of other --data or --minutes: use the same, or another --output.")
    write_json(known, task)
    reports = {"reference": measured("reference", ["--reference"], args)}
    for loss in face_recognition.LOSSES:
        reports[f"resnet18-{loss}"] = measured(f"resnet18-{loss}", ["--loss", loss], args)
        write_table(reports, args)
    best = max(face_recognition.LOSSES, key=lambda loss: reports[f"resnet18-{loss}"]["validation"])
    for backbone in backbones.BACKBONES:
        switches = ["--backbone", backbone, "--loss", best]
        reports[f"{backbone}-{best}"] = measured(f"{backbone}-{best}", switches, args, "faces-112-color")
        write_table(reports, args)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=commands.number(float, 0.1), default=20, help="of each training [20]")
    parser.add_argument("--output", type=Path, default=Path("outputs/methods"), metavar="DIR", help="[outputs/methods]")
    parser.set_defaults(run=compare)
    sys.exit(commands.run(parser.parse_args()))
