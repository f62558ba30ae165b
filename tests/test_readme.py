"""What README.md and the other pages show and name is there."""

import re
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


def test_every_command_that_the_readme_shows_is_known():
    import face_landmark
    import face_recognition
    import fasterrcnn_face_recognition

    scripts = {"face_recognition.py": face_recognition, "face_landmark.py": face_landmark,
               "fasterrcnn_face_recognition.py": fasterrcnn_face_recognition}  # fmt: skip
    shown = re.findall(r"python3 (\w+\.py) ([a-z-]+)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(shown) > 8
    for script, command in shown:
        with pytest.raises(SystemExit) as end:
            scripts[script].main([command, "--help"])
        assert end.value.code == 0, f"{script} has no {command}"
