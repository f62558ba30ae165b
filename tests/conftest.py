"""Drawn faces that several test files share, made once a run; and the same precision on every processor."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from facekit import datasets, synthetic, training


@pytest.fixture(scope="session", autouse=True)
def automatic_precision_is_float32() -> Iterator[None]:
    """So that numbers can be compared closely; tests of bfloat16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "bfloat16_is_fast", lambda device: False)
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 40 drawn people with 6 pictures each; the pictures lie in its drawn_faces/."""
    folder = tmp_path_factory.mktemp("prepared")
    synthetic.write_faces(folder / "drawn_faces", people=40, pictures_per_person=6, workers=1)
    photos = datasets.folder_of_folders(folder / "drawn_faces")
    datasets.pack_faces(photos, folder, size=80, workers=1)
    return folder


@pytest.fixture(scope="session")
def faces(prepared: Path) -> datasets.FaceSet:
    return datasets.load_faces(prepared)
