"""What the command lines have in common: options, settings, exit status."""

import argparse
import csv
import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from facekit import commands
from facekit.files import InputError


@dataclass(frozen=True)
class Settings:
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 0.5
    margin: float = 0.25
    seed: int = 7


def parse(*arguments: str) -> argparse.Namespace:
    """By a program of one command, which has all options."""
    parser = argparse.ArgumentParser()
    commands.add_command(parser.add_subparsers(), "learn", lambda args: 0, "Learn it.", commands.OPTIONS)
    return parser.parse_args(["learn", *arguments])


@pytest.mark.parametrize(("kind", "smallest", "text", "value"), [
    (int, 1, "1", 1), (int, 0, "0", 0), (int, 1, "400", 400),
    (float, 0.1, "0.1", 0.1), (float, 1e-6, "1e-3", 0.001), (float, 0.1, "90", 90.0),
])  # fmt: skip
def test_a_number_is_read(kind: type, smallest: float, text: str, value: float):
    read = commands.number(kind, smallest)(text)
    assert read == value and type(read) is kind


@pytest.mark.parametrize("text", ["", "many", "0", "-3", "nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(("kind", "called"), [(int, "a whole number from 1 on"), (float, "a number from 1 on")])
def test_what_is_no_such_number_is_named(kind: type, called: str, text: str):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        commands.number(kind, 1)(text)
    assert str(raised.value) == f"{text} is not {called}"


@pytest.mark.parametrize("text", ["0", "1.01", "inf", "nan"])
def test_a_number_may_have_an_upper_limit(text: str):
    read = commands.number(float, 0.01, 1)
    assert read("1") == 1 and read("0.01") == 0.01
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 0.01 to 1"):
        read(text)


def test_half_a_step_is_no_whole_number():
    with pytest.raises(argparse.ArgumentTypeError, match="1.5 is not a whole number"):
        commands.number(int, 1)("1.5")


@pytest.mark.parametrize("arguments", [
    ["--epochs", "0"], ["--batch-size", "0"], ["--learning-rate", "0"], ["--learning-rate", "nan"],
    ["--time-limit", "0"], ["--seed", "-1"], ["--device", "abacus"], ["--precision", "float16"], ["--max-pixels", "0"],
    ["--epochs"], ["--fly"],
])  # fmt: skip
def test_wrong_options_are_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_command_has_its_function_its_options_and_their_help(capsys: pytest.CaptureFixture):
    args = parse("--time-limit", "2.5", "--resume")
    assert args.run(args) == 0
    assert (args.time_limit, args.resume, args.dry_run) == (2.5, True, False)
    assert (args.device, args.precision) == ("auto", "auto")
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "Learn it." in said
    assert all(option in said for option in commands.OPTIONS)


def test_settings_are_the_defaults_but_for_what_is_given():
    assert commands.choose_settings(Settings(), parse("--seed", "7")) == Settings()
    args = parse("--epochs", "9", "--batch-size", "16", "--seed", "1", "--time-limit", "3", "--device", "cpu")
    assert commands.choose_settings(Settings(), args) == Settings(epochs=9, batch_size=16, seed=1)


@pytest.mark.parametrize("arguments", [[], ["--epochs", "9"]])
def test_a_dry_run_has_two_epochs(arguments: list[str]):
    args = parse("--dry-run", "--learning-rate", "0.1", "--seed", "7", *arguments)
    assert commands.choose_settings(Settings(), args) == Settings(epochs=2, learning_rate=0.1)


@pytest.mark.parametrize("words", [
    [],
    ["--epochs", "9", "--resume"],  # stopped for the second time
    ["--resume", "outputs/other", "--epochs", "9"],
    ["--name", "it's $HOME"],  # a shell must read the same words
])  # fmt: skip
def test_how_to_go_on_is_a_command_that_resumes_this_run(monkeypatch: pytest.MonkeyPatch, words: list[str]):
    script = ["/home/Zoë/my faces/face.py", "train"]
    monkeypatch.setattr(sys, "argv", script + words)
    command = shlex.split(commands.how_to_go_on(parse(*words), Path("outputs/my run")))
    kept = [word for word in words if word not in ("--resume", "outputs/other")]
    assert command == ["python3", *script, *kept, "--resume", "outputs/my run"]
    assert parse(*command[3:]).resume == "outputs/my run"


@pytest.mark.parametrize("status", [0, 1, 130])
def test_the_exit_status_is_that_of_the_command(status: int):
    assert commands.run(argparse.Namespace(run=lambda args: status)) == status


@pytest.mark.parametrize(("error", "status", "said"), [
    (InputError("photo.jpg is no photo: name another."), 2, "error: photo.jpg is no photo: name another.\n"),
    (KeyboardInterrupt(), 130, "\nStopped. The same command goes on where it can.\n"),
])  # fmt: skip
def test_a_command_that_cannot_go_on_says_so_without_a_traceback(capsys, error: BaseException, status: int, said: str):
    def command(args: argparse.Namespace) -> int:
        raise error

    assert commands.run(argparse.Namespace(run=command)) == status
    assert capsys.readouterr() == ("", said)


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        commands.run(argparse.Namespace(run=lambda args: 1 // 0))


# ---------------------------------------------------------------- the folder of a run, and switches from a file


def run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    options = {name: commands.OPTIONS[name] for name in commands.TRAINING} | {
        "--prepared": dict(type=Path, default=Path("prepared")), "--color": dict(action=argparse.BooleanOptionalAction),
        "--data": dict(type=Path, action="append"), "--loss": dict(default="triplet"), "--init": {},
    }  # fmt: skip
    commands.add_command(parser.add_subparsers(dest="command"), "train", print, "Trains.", options)
    return parser


def parse_run(*words: str) -> argparse.Namespace:
    return commands.parse(run_parser(), ["train", *words])


def test_switches_come_from_a_file_but_the_command_line_wins(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\ntime_limit: 2.5\nseed: 3   # a comment\ncolor: false\ndry_run: false\ndata: [a, b]\n"
                    "loss: arcface\n")  # fmt: skip
    args = parse_run("--config", str(file), "--seed", "9", "--loss=cosface")
    assert (args.epochs, args.time_limit, args.seed, args.color, args.loss) == (7, 2.5, 9, False, "cosface")
    assert args.data == [Path("a"), Path("b")]
    assert parse_run("--config", str(file), "--data", "mine", "--color").data == [Path("mine")]
    assert parse_run("--seed", "9").epochs is None


@pytest.mark.parametrize(("content", "message"), [
    (None, "run.yaml cannot be read (No such file or directory)"), ("epochs: [", "run.yaml is no list of switches"),
    ("just words", "run.yaml is no list of switches"), ("epoch_count: 5", "unrecognized arguments: --epoch-count=5"),
    ("epochs: many", "many is not a whole number"),
])  # fmt: skip
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, content: str | None, message: str, capsys):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        parse_run("--config", str(file))
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_run_is_recorded_and_its_file_runs_it_again(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = parse_run("--epochs", "3", "--no-color", "--data", "some", "--time-limit", "0.5")
    with commands.recorded(args, "triplet-resnet18") as folder:
        print("epoch 1")
    assert folder == Path("outputs") / f"{date.today()}-triplet-resnet18"
    assert (folder / "log.txt").read_text() == capsys.readouterr().out == "epoch 1\n"
    again = parse_run("--config", str(folder / "config.yaml"))
    assert vars(again.typed) == vars(args.typed) | {"config": folder / "config.yaml"}
    args = parse_run("--init", "mine.safetensors")
    Path("mine.safetensors").write_text("weights")
    args.color, args.init = True, "mine.safetensors"  # as a command fills in what nobody typed
    with commands.recorded(args, "triplet-resnet18") as folder:
        pass
    again = parse_run("--config", str(folder / "config.yaml"))
    assert (again.color, again.init) == (None, str(folder / "init.safetensors"))


def test_each_run_has_its_own_folder_and_resume_finds_the_last(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for when, name in enumerate(["one", "one", "two", "one-2", "up/one+3"]):
        with commands.recorded(parse_run("--name", name), "unused") as folder:
            (folder / "checkpoint.pt").touch()
            os.utime(folder / "checkpoint.pt", (when, when))
        folders.append(folder)
    assert len(set(folders)) == 5 and folders[1].name == f"{date.today()}-one+2"
    with commands.recorded(parse_run("--resume"), "one") as folder:
        assert folder == folders[1]
    with commands.recorded(parse_run("--resume", str(folders[0])), "one") as folder:
        assert folder == folders[0]
    with commands.recorded(parse_run("--resume"), "up/one+3") as folder:
        assert folder == folders[4] and folder.name == f"{date.today()}-up-one-3"
    with pytest.raises(InputError, match="no training called three"), commands.recorded(parse_run("--resume"), "three"):
        pass
    with pytest.raises(InputError, match="typo has no checkpoint.pt"), commands.recorded(
            parse_run("--resume", "outputs/typo"), "one"):  # fmt: skip
        pass
    assert not Path("outputs/typo").exists()
    with commands.recorded(parse_run("--dry-run"), "one") as folder:
        assert folder == Path("prepared/dry_run")


def test_a_training_outlives_the_reader_of_what_it_prints(tmp_path: Path):
    """As `| head` or a `tee` that Ctrl-C ends, too: nothing is lost."""
    script = """
import argparse, sys
from facekit import commands
def train(args):
    with commands.recorded(args, "one") as folder:
        for epoch in range(4):
            print(f"epoch {epoch}", flush=True)
            sys.stdin.readline()
        (folder / "checkpoint.pt").touch()
        raise KeyboardInterrupt("saved")
args = argparse.Namespace(run=train, name=None, dry_run=False, resume=None)
sys.argv = ["train.py"]
sys.exit(commands.run(args))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert process.stdout.readline() == "epoch 0\n"
    process.stdout.close()
    process.stdin.write("\n" * 4)
    process.stdin.close()
    err = process.stderr.read()
    assert (process.wait(60), err.count("\n")) == (130, 2), err
    assert err.startswith("\nStopped and saved. To go on: python3 train.py --resume outputs")
    (log,) = tmp_path.glob("outputs/*/log.txt")
    assert log.read_text() == "epoch 0\nepoch 1\nepoch 2\nepoch 3\n"


def test_a_resumed_run_goes_on_with_its_copies(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("outputs/2026-01-02-mine")
    run.mkdir(parents=True)
    (run / "init.safetensors").touch()
    (run / "checkpoint.pt").touch()
    own = str(run / "init.safetensors")
    for resume, typed, init in ((None, "w", "w"), (None, None, None), (str(run), "w", own), (str(run), None, own),
                                (True, "w", "w"), (True, None, own)):  # fmt: skip
        for given, usual in (("mine", "unused"), (None, "mine")):
            args = argparse.Namespace(resume=resume, init=typed, teacher=None, name=given)
            commands.use_own_copies(args, usual)
            assert (args.init, args.teacher) == (init, None)


ROWS = [{"photo": "a.jpg", "score": 0.12345, "same": True}, {"photo": "longer, name.jpg", "score": 1.0, "same": False}]


@pytest.mark.parametrize(("typed", "path"), [
    ("photo.jpg", "photo.jpg"), (" my photo.jpg ", "my photo.jpg"), ("'my photo.jpg'", "my photo.jpg"),
    ('"my photo.jpg"', "my photo.jpg"), ("my\\ photo.jpg", "my photo.jpg"), ("'it'\\''s.jpg'", "it's.jpg"),
    ("it's.jpg", "it's.jpg"), ("it\\'s.jpg", "it's.jpg"), ("'quoted'", "'quoted'"), ("back\\slash", "back\\slash"),
    ("~/at home.jpg", "home/at home.jpg"), ("'~/at home.jpg'", "home/at home.jpg"),
    ("none\\x.jpg", "none\\x.jpg"), ("'no ne.jpg'", "no ne.jpg"), ("a\x00b", "a\x00b"),
])  # fmt: skip
def test_a_typed_path_is_understood(tmp_path: Path, monkeypatch, typed: str, path: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "home")
    Path("home").mkdir()
    for name in ["photo.jpg", "my photo.jpg", "it's.jpg", "'quoted'", "back\\slash", "home/at home.jpg"]:
        Path(name).touch()
    assert commands.typed_path(typed) == Path(path)


@pytest.mark.parametrize("typed", ["", "  ", "''", '""'])
def test_nothing_is_typed(typed: str):
    assert commands.typed_path(typed) is None


def test_a_folder_that_must_not_be_read_is_one_sentence(capsys: pytest.CaptureFixture):
    def read(args: argparse.Namespace) -> int:
        raise PermissionError(13, "Permission denied", "secret")

    assert commands.run(argparse.Namespace(run=read)) == 2
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'secret'\n"


def test_tables_for_people_and_programs(capsys: pytest.CaptureFixture):
    commands.print_table(ROWS, argparse.Namespace(json=False, csv=False))
    assert capsys.readouterr().out.splitlines() == [
        "photo             score  same", "a.jpg             0.123  yes", "longer, name.jpg  1.000  no"]  # fmt: skip
    commands.print_table(ROWS, argparse.Namespace(json=True, csv=False))
    assert json.loads(capsys.readouterr().out) == ROWS
    commands.print_table(ROWS, argparse.Namespace(json=False, csv=True))
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out)))[1]["photo"] == "longer, name.jpg"


@pytest.mark.parametrize(("pair", "values"), [("json csv", (True, True)), ("threshold far", (0.0, "0.01"))])
def test_two_switches_of_which_only_one_can_count_end_it_before_anything_is_done(pair: str, values: tuple, capsys):
    def work(args: argparse.Namespace) -> int:
        raise AssertionError("it has begun")

    given = dict(zip(pair.split(), values))
    assert commands.run(argparse.Namespace(run=work, **given)) == 2
    assert capsys.readouterr().err.endswith("give one of them.\n")
    alone = given | {pair.split()[1]: None}
    assert commands.run(argparse.Namespace(run=lambda args: 0, **alone)) == 0
