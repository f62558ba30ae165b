"""Drawn faces that several test files share, made once a run."""

from pathlib import Path

import pytest

from facekit import datasets, synthetic


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
