"""What the command lines of the three scripts have in common."""

import argparse
import csv
import glob
import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from facekit.files import InputError, write_text
from facekit.images import MAX_PIXELS


def number(kind: type, smallest: float, largest: float = math.inf) -> Callable[[str], float]:
    """Reads the value of an option: an int or a float from `smallest` to `largest`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not smallest <= value <= largest or value == math.inf:
            called = "whole number" if kind is int else "number"
            until = "on" if largest == math.inf else f"to {largest}"
            raise argparse.ArgumentTypeError(f"{text} is not a {called} from {smallest} {until}")
        return value

    return read


OPTIONS: dict[str, dict[str, Any]] = {  # what argparse is told about them
    "--epochs": dict(type=number(int, 1), help="at most"),
    "--batch-size": dict(type=number(int, 1), metavar="N", help="images a step"),
    "--learning-rate": dict(type=number(float, 1e-6), metavar="RATE", help="at its highest"),
    "--time-limit": dict(type=number(float, 0.1), metavar="MINUTES", help="fit the training into this time"),
    "--resume": dict(nargs="?", const=True, metavar="RUN", help="go on from the checkpoint in the folder RUN "
                     "[of the run of this name that was saved last]"),
    "--dry-run": dict(action="store_true", help="two epochs of two steps; changes no published weights"),
    "--seed": dict(type=number(int, 0, 2**32 - 1), default=0, help="of all random choices [0]"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"], help="[auto: a GPU where there is one]"),
    "--precision": dict(default="auto", choices=["auto", "float32", "bfloat16"],
                        help="[auto: bfloat16 where it is fast]"),
    "--name": dict(help="of the run: its folder is outputs/DATE-NAME"),
    "--config": dict(type=Path, metavar="FILE", help="switches from a YAML file; the command line wins"),
    "--tensorboard": dict(type=Path, metavar="DIR", help="write events for TensorBoard"),
    "--max-pixels": dict(type=number(int, 1), default=MAX_PIXELS, metavar="N",
                         help=f"refuse larger photos [{MAX_PIXELS}]"),
}  # fmt: skip
TRAINING = ("--epochs", "--batch-size", "--learning-rate", "--time-limit", "--resume", "--dry-run", "--seed",
            "--device", "--precision", "--name", "--config", "--tensorboard")  # fmt: skip
OUTPUTS = Path("outputs")
EITHER = {("json", "csv"): "are two forms of the same table", ("threshold", "far"): "both choose the score"}


def add_command(subparsers: Any, name: str, run: Callable, about: str, options: dict) -> argparse.ArgumentParser:
    """A subcommand; `run` takes the parsed arguments and returns the exit status."""
    parser = subparsers.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(run=run)
    for option, meaning in options.items():
        parser.add_argument(option, **meaning)
    return parser


def with_defaults(usual: Any, reference: Any = None) -> dict[str, dict[str, Any]]:
    """The options of a training whose defaults are in its settings, with these in their help."""
    told = {}
    for option in ("--epochs", "--batch-size", "--learning-rate"):
        name = option[2:].replace("-", "_")
        values = f"{getattr(usual, name):g}"
        if reference and getattr(reference, name) != getattr(usual, name):
            values += f"; {getattr(reference, name):g} with --reference"
        told[option] = OPTIONS[option] | {"help": f"{OPTIONS[option]['help']} [{values}]"}
    return told


def choose_settings(defaults: Any, args: argparse.Namespace) -> Any:
    """The settings (a dataclass) with what the command line gives for them; two epochs for a dry run."""
    given = {name: value for name, value in vars(args).items() if hasattr(defaults, name) and value is not None}
    return replace(defaults, **given | ({"epochs": 2} if args.dry_run else {}))


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; what it does not give is taken from the file of --config, where there is one."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = parser.parse_args(arguments)
    if getattr(args, "config", None):
        try:
            switches = _switches(args.config, {word.split("=")[0] for word in arguments})
        except InputError as error:
            parser.error(str(error))
        args = parser.parse_args([arguments[0], *switches, *arguments[1:]])
    args.typed = argparse.Namespace(**vars(args))  # commands fill in what it leaves open
    return args


def _switches(path: Path, given: set[str]) -> list[str]:
    """{"time_limit": 20, "color": true} -> ["--time-limit=20", "--color"], without those that are given."""
    try:
        import yaml
    except ImportError:
        raise InputError("--config reads YAML: pip install pyyaml") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        values = {name.replace("_", "-"): value for name, value in content.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name the file of a run.") from None
    except (UnicodeDecodeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no list of switches, one a line as in `epochs: 20` ({error}).") from None
    switches = []
    for name, value in values.items():
        if f"--{name}" not in given and value is not None:
            for each in value if isinstance(value, list) else [value]:
                if each is True:
                    switches.append(f"--{name}")
                elif each is not False:
                    switches.append(f"--{name}={each}")
                elif name in ("color", "reference", "hard-only"):  # the others have no opposite, and are off anyway
                    switches.append(f"--no-{name}")
    return switches


class Stopped(Exception):
    """A training that was stopped and saved. The message says how to go on."""


@contextmanager
def recorded(args: argparse.Namespace, name: str) -> Iterator[Path]:
    """The folder of a training: checkpoint, history, log.txt with what is printed, config.yaml to run it again.

    outputs/DATE-NAME, with +2 and so on where that is there; with --resume the given one, or that of this name which
    was saved last. A dry run has `dry_run` beside the prepared data. Ctrl-C becomes Stopped, which says how to go on.
    InputError when there is nothing to resume.
    """
    name = _plain(args.name or name)
    if args.dry_run:
        folder = args.prepared / "dry_run"
    elif args.resume:
        folder = last_run(name) if args.resume is True else Path(args.resume)
        if not folder:
            raise InputError(f"There is no training called {name} under {OUTPUTS}/ to resume: leave out --resume.")
        if not (folder / "checkpoint.pt").is_file():
            raise InputError(f"{folder} has no checkpoint.pt: give --resume the folder of a training, or leave it out.")
        print(f"Going on in {folder}")
    else:
        folder = _new_folder(OUTPUTS / f"{date.today()}-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        again = argparse.Namespace(**vars(vars(args).get("typed", args)))
        for switch in ("init", "teacher"):
            if weights := getattr(again, switch, None):  # a copy, as a training may replace the file
                copy = folder / f"{switch}.safetensors"
                with suppress(shutil.SameFileError):  # --config of a dry run
                    shutil.copy(weights, copy)
                setattr(again, switch, copy)
        lines = [f"{switch}: {json.dumps(value, ensure_ascii=False)}\n" for switch, value in _given(again)]
        write_text(folder / "config.yaml", "".join(lines))
    with (open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as log,  # names may be any bytes
          redirect_stdout(_Both(sys.stdout, log))):  # fmt: skip
        try:
            yield folder
        except KeyboardInterrupt as stop:
            if not (folder / "checkpoint.pt").exists():
                raise
            said = "Stopped and saved." if stop.args else "Stopped; what came after the last checkpoint is lost."
            raise Stopped(f"\n{said} To go on: {how_to_go_on(args, folder)}") from None


def use_own_copies(args: argparse.Namespace, name: str | None) -> None:
    """A run that is resumed goes on with its copies of --init and --teacher: these files may be others by now.

    Where --resume does not name it, it is the last run called `name`, if any; what the command line says counts then.
    """
    named = isinstance(args.resume, str)
    run = Path(args.resume) if named else last_run(args.name or name) if args.resume and name else None
    for switch in ("init", "teacher"):
        if run and (copy := run / f"{switch}.safetensors").is_file() and (named or not getattr(args, switch)):
            setattr(args, switch, str(copy))


def _plain(name: str) -> str:
    """As a folder can be called on every system; the + is kept for the numbers of runs with the same name."""
    return re.sub(r'[<>:"/\\|?*+]', "-", name)


def _new_folder(path: Path) -> Path:
    """Makes `path`, or path+2 and so on where that is there, also when two trainings start together."""
    folder = path
    for number in itertools.count(2):
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
        folder = Path(f"{path}+{number}")
    return folder


def last_run(name: str) -> Path | None:
    """The folder of the training of this name that was saved last."""
    this_name = re.compile(rf"\d{{4}}-\d\d-\d\d-{re.escape(_plain(name))}(\+\d+)?")
    saved = [path for path in OUTPUTS.glob("*/checkpoint.pt") if this_name.fullmatch(path.parent.name)]
    return max(saved, key=lambda path: path.stat().st_mtime).parent if saved else None


def _given(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """The switches that make this run, as values of JSON, which is YAML, too."""
    of_this_call = ("command", "run", "config", "resume", "dry_run", "typed")
    switches = [(name, value) for name, value in vars(args).items() if name not in of_this_call]
    plain = {name: [str(each) for each in value] if isinstance(value, list) else value for name, value in switches}
    return [(name, str(value) if isinstance(value, Path) else value) for name, value in plain.items()
            if value is not None]  # fmt: skip


def to_nowhere(stream: Any) -> None:
    """Whoever reads the stream, say `head`, has enough of it: what follows is dropped."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Both:
    """A stream that writes to two, to the second even when nobody reads the first any more."""

    def __init__(self, first: Any, second: Any):
        self.first, self.second = first, second

    def write(self, text: str) -> int:
        self.second.write(text)
        try:
            return self.first.write(text)
        except BrokenPipeError:
            to_nowhere(self.first)
            return len(text)

    def flush(self) -> None:
        self.second.flush()
        try:
            self.first.flush()
        except BrokenPipeError:
            to_nowhere(self.first)

    def __getattr__(self, name: str) -> Any:  # encoding, isatty and so on
        return getattr(self.first, name)


def how_to_go_on(args: argparse.Namespace, folder: Path) -> str:
    """The command that resumes the run in `folder`: this one again."""
    words = ["python3", *sys.argv]
    if "--resume" in words:
        at = words.index("--resume")
        del words[at : at + (1 if args.resume is True else 2)]
    return quoted([*words, "--resume", str(folder)])


def quoted(words: Sequence[str]) -> str:
    """As a line for the system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def note_other_split(metadata: dict, summary: dict) -> bool:
    """Whether weights with this metadata were trained on another split than the data of the summary have; says so."""
    other = metadata["data"].get("split_digest") != summary.get("split_digest")
    if other:
        print("Note: the weights were trained on another split of the data, or on other data. If what they learnt from "
              "is among these test data, the numbers are too good.", file=sys.stderr)  # fmt: skip
    return other


def print_skipped(summary: dict, prepared: Path) -> None:
    """The first ten files that were left out, and why; skipped.csv has all."""
    for skipped in summary["skipped"][:10]:
        print(f"skipped {skipped['file']}: {skipped['why']}")
    if summary["skipped"][10:]:
        print(f"skipped {len(summary['skipped']) - 10} more, see {prepared / 'skipped.csv'}")


def print_table(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Rows of the same keys as aligned columns, or as --json or --csv."""
    if args.json:
        print_json(rows)
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        cells = [list(rows[0])] + [[_shown(value) for value in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_json(value: Any) -> None:
    """In letters of all scripts where standard output can have them, else as their numbers."""
    print(json.dumps(value, ensure_ascii=not str(sys.stdout.encoding).lower().startswith("utf")))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def ask_for_photos(answer: Callable[[Path], None]) -> int:
    """The interactive form: one photo a line, until Ctrl-D or Ctrl-C; Tab completes file names where it can.

    Errors of one sentence are printed and the next line is asked for; so is one after an empty line.
    """
    _complete_file_names()
    while True:
        try:
            line = input("Image path: ")
            if path := typed_path(line):
                _answer(path, answer)
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        except UnicodeDecodeError:
            print("error: that is not UTF-8 text: type the path of a photo.")
        sys.stdout.flush()


def _answer(path: Path, answer: Callable[[Path], None]) -> None:
    try:
        answer(path)
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        print(f"error: {_sentence(error)}")


def typed_path(line: str) -> Path | None:
    """The path in a typed, pasted or dropped line: quotes, ~ and escaped spaces are understood. None when empty."""
    text = line.strip()
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if not bare:
        return None
    readings = [text, bare]
    with suppress(ValueError):  # an apostrophe
        words = shlex.split(text)  # as terminals write a dropped file: my\ photo.jpg, 'it'\''s.jpg'
        readings += words if len(words) == 1 else []
    with suppress(ValueError):  # a zero byte after ~
        readings = [os.path.expanduser(reading) for reading in readings]
    return next(filter(_exists, map(Path, readings)), Path(readings[1]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a character that no file name has
        return False


def _complete_file_names() -> None:  # after an opening quote, too
    try:
        import readline
    except ImportError:  # Windows
        return

    names: list[str] = []

    def complete(text: str, state: int) -> str | None:
        """The completion number `state`; readline asks for 0, 1, 2, ... until there is none."""
        if state == 0:
            start = os.path.expanduser(text.lstrip("'\""))
            found = sorted(glob.glob(glob.escape(start) + "*"))
            names[:] = [text + (name + "/" * os.path.isdir(name))[len(start) :] for name in found]
        return names[state] if state < len(names) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")  # file names contain spaces
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def check_switches(args: argparse.Namespace) -> None:
    """InputError, before anything is done, when two switches are given of which only one can count."""
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    for pair, why in EITHER.items():
        if given.issuperset(pair):
            raise InputError(f"--{pair[0]} and --{pair[1]} {why}: give one of them.")


def run(args: argparse.Namespace) -> int:
    """Runs the chosen command: 0, 1, or 2 after an error of one sentence, 130 after Ctrl-C."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        with suppress(AttributeError):  # tests put others in their place
            stream.reconfigure(errors=errors)
    try:
        check_switches(args)
        status = args.run(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        to_nowhere(sys.stdout)
        return 0
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk, a forbidden folder: it names the file
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    """What users read; a RuntimeError that is not for want of memory is a fault of the program, and raised again."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
        return "there is not enough memory: work on less at once (--batch-size, --size), or use --device cpu."
    if isinstance(error, RuntimeError):
        raise error
    return str(error)
