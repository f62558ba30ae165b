"""What README.md and the other pages show and name is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "dataset/README.md", "weights/MODEL_CARD.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page: str):
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split("\n")
    links = re.findall(r"\]\(([^)#\s]+)", (REPOSITORY / page).read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    for link in local:
        place = ((REPOSITORY / page).parent / link).resolve()
        assert place.exists(), f"{page} leads to {link}, which is missing"
        file = place.relative_to(REPOSITORY).as_posix()
        assert not any(tracked) or place.is_dir() or file in tracked, f"{link} is not committed"
    assert local or page != "README.md"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_is_known_with_its_switches(page: str):
    import face_landmark
    import face_recognition
    import fasterrcnn_face_recognition

    scripts = {"face_recognition.py": face_recognition, "face_landmark.py": face_landmark,
               "fasterrcnn_face_recognition.py": fasterrcnn_face_recognition}  # fmt: skip
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")  # a line that goes on
    shown = re.findall(r"^python3 (\w+\.py)(.*)", text, re.MULTILINE)
    shown += re.findall(r"`python3\s+(\w+\.py)([^`]*)`", text)
    assert shown
    for script, words in shown:
        switches = [word.removesuffix("...") for word in shlex.split(words, comments=True)]
        if switches and not switches[0].startswith("-"):  # else the loop, which asks for photos
            scripts[script].parse(switches)  # ends the program when it does not know one
