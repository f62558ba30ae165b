"""Files that are written whole or not at all, and the error that users read."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any


class InputError(Exception):
    """Something the user gave does not work. The message is one sentence that names it and says what to do.

    The scripts print the message and exit with status 2; nobody sees a traceback.
    """


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block ends without an error.

    A reader sees the old file or the new one, never half of either, and a stopped program leaves the old one.
    The temporary name keeps the suffix, because many writers choose the format by it; a long one is cut, as there is
    a longest one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """photo.jpg, or photo_2.jpg when that is there, or photo_3.jpg, ..."""
    names = (path.with_stem(f"{path.stem}_{number}") if number > 1 else path for number in count(1))
    return next(name for name in names if not name.exists())


def printable(text: object) -> str:
    """File names on Linux are bytes; in those that are not UTF-8, the odd bytes as \\udcXX."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all; file names may be any bytes, see `printable`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: str | Path, rows: Iterable[Iterable]) -> None:
    """Writes rows, the first of which are the columns' names, whole or not at all."""
    with (written_whole(path) as temporary,
          open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file):  # fmt: skip
        csv.writer(file).writerows(rows)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file. InputError when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run the command that makes it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): delete it and make it again.") from None
