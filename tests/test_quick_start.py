"""The scripts start without torch's compiler, and what torchvision asks it is still answered."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def python(code: str) -> list[str]:
    program = [sys.executable, "-c", code]
    return subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("script", ["face_recognition", "face_landmark", "fasterrcnn_face_recognition"])
def test_a_script_starts_without_the_compiler(script: str):
    assert python(f"import sys, {script}; print('torch._dynamo' in sys.modules)") == ["False"]


def test_torchvision_gets_the_compilers_own_answer():
    answers = python(
        "import facekit.quick_start, sys, torchvision\n"
        "asks = sys.modules['torchvision.ops.roi_align'].is_compile_supported\n"
        "answers = [asks('cpu'), asks('meta')]\n"
        "from torch._dynamo.utils import is_compile_supported as compiler\n"
        "print(*answers, compiler is not asks, compiler('cpu'), compiler('meta'))"
    )
    assert answers[:2] == answers[3:] and answers[2] == "True"
