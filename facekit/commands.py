"""What the command lines of the three scripts have in common."""

import argparse
import glob
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from facekit.files import InputError
from facekit.images import MAX_PIXELS


def number(kind: type, smallest: float) -> Callable[[str], float]:
    """Reads the value of an option: an int or a float, not below `smallest`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not smallest <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a{' whole' * (kind is int)} number from {smallest} on")
        return value

    return read


OPTIONS: dict[str, dict[str, Any]] = {  # what argparse is told about them
    "--epochs": dict(type=number(int, 1), help="at most [those of the settings]"),
    "--batch-size": dict(type=number(int, 1), metavar="N", help="images a step"),
    "--learning-rate": dict(type=number(float, 1e-6), metavar="RATE", help="at its highest"),
    "--time-limit": dict(type=number(float, 0.1), metavar="MINUTES", help="fit the training into this time"),
    "--resume": dict(action="store_true", help="go on from the last checkpoint"),
    "--dry-run": dict(action="store_true", help="two epochs of two steps; changes no published weights"),
    "--seed": dict(type=number(int, 0), default=0, help="of all random choices [0]"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"], help="[auto: a GPU where there is one]"),
    "--precision": dict(default="auto", choices=["auto", "float32", "bfloat16"],
                        help="[auto: bfloat16 where it is fast]"),
    "--max-pixels": dict(type=number(int, 1), default=MAX_PIXELS, metavar="N",
                         help=f"refuse larger photos [{MAX_PIXELS}]"),
}  # fmt: skip
TRAINING = ("--epochs", "--batch-size", "--learning-rate", "--time-limit", "--resume", "--dry-run", "--seed",
            "--device", "--precision")  # fmt: skip


def add_command(subparsers: Any, name: str, run: Callable, about: str, options: dict) -> argparse.ArgumentParser:
    """A subcommand; `run` takes the parsed arguments and returns the exit status."""
    parser = subparsers.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    for option, meaning in options.items():
        parser.add_argument(option, **meaning)
    return parser


def choose_settings(defaults: Any, args: argparse.Namespace) -> Any:
    """The settings (a dataclass) with what the command line gives for them; two epochs for a dry run."""
    given = {name: value for name, value in vars(args).items() if hasattr(defaults, name) and value is not None}
    return replace(defaults, **given | ({"epochs": 2} if args.dry_run else {}))


def how_to_go_on() -> str:
    """The sentence after Ctrl-C."""
    again = [word for word in sys.argv if word != "--resume"]
    return f"\nStopped and saved. To go on: python3 {shlex.join(again)} --resume"


def ask_for_photos(answer: Callable[[Path], None]) -> int:
    """The interactive form: one photo a line, until Ctrl-D or Ctrl-C; Tab completes file names where it can.

    Errors of one sentence are printed and the next line is asked for; so is one after an empty line.
    """
    _complete_file_names()
    while True:
        try:
            line = input("Image path: ")
            if path := typed_path(line):
                answer(path)
        except InputError as error:
            print(f"error: {error}")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        except UnicodeDecodeError:
            print("error: that is not UTF-8 text: type the path of a photo.")
        sys.stdout.flush()


def typed_path(line: str) -> Path | None:
    """The path in a typed, pasted or dropped line: quotes, ~ and escaped spaces are understood. None when empty."""
    text = line.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if not text:
        return None
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~nobody
        path = Path(text)
    unescaped = Path(re.sub(r"\\(.)", r"\1", str(path)))  # a terminal escapes the spaces of a dropped file
    return unescaped if not _exists(path) and _exists(unescaped) else path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a character that no file name has
        return False


def _complete_file_names() -> None:
    try:
        import readline
    except ImportError:  # Windows
        return

    def complete(text: str, state: int) -> str | None:
        start = os.path.expanduser(text)
        found = sorted(glob.glob(glob.escape(start) + "*"))
        names = [text + (name + "/" * os.path.isdir(name))[len(start) :] for name in found]
        return names[state] if state < len(names) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")  # file names contain spaces
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def run(args: argparse.Namespace) -> int:
    """Runs the chosen command: 0, 1, or 2 after an error of one sentence, 130 after Ctrl-C."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        with suppress(AttributeError):  # tests put others in their place
            stream.reconfigure(errors=errors)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads our output, say `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
