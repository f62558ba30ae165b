"""How fast it is, against the plain way to do the same, both in one run: python3 benchmarks/speed.py

Prints a Markdown table. Each pair is timed in turns, A B A B ..., and the medians and their ratio are shown, so
that a machine whose speed drifts does not favour one of them.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import face_landmark
import face_recognition
import fasterrcnn_face_recognition as chain_script
from facekit import datasets, synthetic, training
from facekit.images import MAX_PIXELS, face_pixels


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(ours: Callable, plain: Callable, rounds: int) -> tuple[float, float]:
    """Median seconds of both, after a warm-up of each."""
    ours(), plain()
    times = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def plain_mining(memory: np.ndarray, people: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """The definition: a sort of all distances for each anchor."""
    rows = []
    for anchor in anchors:
        ranked = np.argsort(((memory - memory[anchor]) ** 2).sum(1))
        strangers = ranked[people[ranked] != people[anchor]]
        rows.append(strangers[20:27])
    return np.stack(rows)


def mining(rounds: int, images: int = 40_000, anchors: int = 128) -> tuple[str, str, str, float, float]:
    random = np.random.default_rng(0)
    memory, people = random.normal(size=(images, 32)).astype(np.float32), random.integers(0, images // 4, images)
    chosen = random.choice(images, anchors, replace=False)
    on_device = [torch.from_numpy(array).to(training.choose_device()) for array in (memory, people, chosen)]

    def ours() -> torch.Tensor:
        m, p, a = on_device
        return face_recognition.mine_negatives(m, p, m[a], p[a], 7)

    assert np.array_equal(ours().cpu().numpy(), plain_mining(memory, people, chosen)), "they must mine the same images"
    a, b = in_turns(ours, lambda: plain_mining(memory, people, chosen), rounds)
    return f"global mining among {images:,} images", "anchors/s", "a sort for each anchor", anchors / a, anchors / b


class PlainRecogniser(face_recognition.Recogniser):
    """The same model, in the memory format that torch takes by default."""

    def features(self, faces: torch.Tensor) -> torch.Tensor:
        return self.backbone(faces)


def training_step(rounds: int, batch: int = 128) -> tuple[str, str, str, float, float]:
    """Whole steps: augmentation, model, losses, gradients, optimiser."""
    device, people = training.choose_device(), np.arange(batch) // 4
    images = np.random.default_rng(0).integers(0, 255, (batch, 1, 80, 80), np.uint8)
    faces = datasets.FaceSet(images, people, [str(person) for person in set(people.tolist())],
                             np.full(batch, "train"), np.full(batch, "noise"), [""] * batch, {})  # fmt: skip
    rows = torch.arange(batch, device=device)

    def course(precision: str) -> face_recognition.Course:
        part = face_recognition.Part(faces, "train", device)
        return face_recognition.Course(part, face_recognition.Settings(), Path(), device, precision)

    ours, plain = course("auto"), course("float32")
    plain.model = PlainRecogniser().to(device)
    plain.optimizer = torch.optim.AdamW(plain.model.parameters())
    a, b = in_turns(lambda: face_recognition.train_step(ours, rows),
                    lambda: face_recognition.train_step(plain, rows), rounds)  # fmt: skip
    return f"training at 80×80, {training.describe(device)}", "images/s", "plain float32, AdamW", batch / a, batch / b


def drawing(rounds: int, people: int = 60) -> tuple[str, str, str, float, float]:
    def draw(workers: int | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_faces(folder, people, 8, workers=workers)

    a, b = in_turns(lambda: draw(None), lambda: draw(1), rounds)
    return "drawing faces of 112×112", "pictures/s", "in one process", 8 * people / a, 8 * people / b


def precision(rounds: int, count: int = 256) -> tuple[str, str, str, float, float]:
    """bfloat16 against float32: the speed, and how far the published model's embeddings of drawn faces part."""
    model = face_recognition.load_recogniser()
    drawn = [synthetic.draw_face(synthetic.make_person(number // 4), number % 4).pixels for number in range(count)]
    crops = np.stack([face_pixels(pixels) for pixels in drawn])

    def embed(kind: str) -> torch.Tensor:
        return face_recognition.embed(model, crops, precision=kind)

    cosine = float((embed("bfloat16") * embed("float32")).sum(1).mean())
    a, b = in_turns(lambda: embed("bfloat16"), lambda: embed("float32"), rounds)
    what = f"embeddings in bfloat16, at a cosine of {cosine:.4f} to those in float32"
    return what, "faces/s", "float32", count / a, count / b


def embedding(rounds: int, count: int = 256) -> tuple[str, str, str, float, float]:
    model = face_recognition.Recogniser().to(training.choose_device()).eval()
    images = np.random.default_rng(0).integers(0, 255, (count, 1, 80, 80), np.uint8)

    def one_by_one() -> None:
        for image in images[:32]:
            face_recognition.embed(model, image[None])

    a, b = in_turns(lambda: face_recognition.embed(model, images), one_by_one, rounds)
    return f"embeddings, {count} at a time", "faces/s", "one at a time", count / a, 32 / b


def finding_landmarks(rounds: int, count: int = 64) -> tuple[str, str, str, float, float]:
    """From pictures to points, both looks and their warps."""
    model = face_landmark.load_landmarker()
    faces = [Image.fromarray(synthetic.draw_face(synthetic.make_person(n), 1, 160, 0.65).pixels) for n in range(count)]

    def one_by_one() -> None:
        for face in faces[:16]:
            face_landmark.detect_landmarks([face], model=model)

    a, b = in_turns(lambda: face_landmark.detect_landmarks(faces, model=model), one_by_one, rounds)
    return f"landmarks, {count} at a time", "faces/s", "one at a time", count / a, 16 / b


def detecting(rounds: int, count: int = 8) -> tuple[str, str, str, float, float]:
    """Photos of 400x300, which the detector sees enlarged to its own size."""
    model = chain_script.load_detector()
    photos = [synthetic.draw_scene([n + 1, n + 2, n + 3], n, size=(400, 300)).pixels for n in range(count)]

    def one_by_one() -> None:
        for photo in photos:
            chain_script.detect(model, [photo])

    a, b = in_turns(lambda: chain_script.detect(model, photos), one_by_one, rounds)
    return f"the detector, photos of 400×300, {count} at a time", "photos/s", "one at a time", count / a, count / b


def chain(rounds: int, count: int = 8) -> tuple[str, str, str, float, float]:
    """From photos of 640x480 with one face to embeddings: detector, landmarks, warp, recogniser."""
    models = chain_script.load_chain()
    photos = [Image.fromarray(synthetic.draw_scene([n + 1], n).pixels) for n in range(count)]

    def one_by_one() -> None:
        for photo in photos:
            chain_script.see_faces(models, [photo])

    a, b = in_turns(lambda: chain_script.see_faces(models, photos), one_by_one, rounds)
    what = f"the chain, photos of 640×480 with one face, {count} at a time"
    return what, "photos/s", "one at a time", count / a, count / b


def whole_answer(rounds: int) -> float:
    """Median seconds from the file of such a photo to its printed name and its drawn picture, all loaded before."""
    models = chain_script.load_chain()
    with tempfile.TemporaryDirectory() as folder:
        gallery = chain_script.open_gallery(models, chain_script.PEOPLE, Path(folder, "gallery"))
        Image.fromarray(synthetic.draw_scene([1], 0).pixels).save(Path(folder, "photo.jpg"))
        args = argparse.Namespace(max_pixels=MAX_PIXELS, threshold=None, far=None, allow_repeats=False,
                                  size=None, output=Path(folder, "out.png"))  # fmt: skip

        def answer() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                chain_script.answer_photo(models, gallery, Path(folder, "photo.jpg"), args)

        answer()
        return statistics.median(seconds(answer) for _ in range(2 * rounds))


def prepare(rounds: int, people: int = 300, size: int = 250) -> tuple[str, str, str, float, float]:
    """Photos as large as those of LFW, read, cut, checked for copies, split and packed."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_faces(Path(folder, "faces"), people, 8, size=size)
        photos = datasets.folder_of_folders(Path(folder, "faces"))

        def plain() -> np.ndarray:
            return np.stack([np.asarray(Image.open(p.path).convert("L").resize((80, 80))) for p in photos])

        a, b = in_turns(lambda: datasets.pack_faces(photos, Path(folder, "packed")), plain, rounds)
    return f"prepare, JPEG of {size}×{size}", "images/s", "a sequential Pillow loop", len(photos) / a, len(photos) / b


def searching(rounds: int, photos: int = 1_000_000, asked: int = 64) -> tuple[str, str, str, float, float]:
    random = np.random.default_rng(0)
    embeddings, queries = (random.normal(size=(count, 32)).astype(np.float32) for count in (photos, asked))
    enrolled, faces = torch.from_numpy(embeddings), torch.from_numpy(queries)

    def ours() -> None:
        face_recognition.nearest_enrolled(face_recognition.cosine, faces, enrolled, enrolled)

    def plain() -> None:
        for query in queries[:4]:
            np.argsort(((embeddings - query) ** 2).sum(1))[: face_recognition.NEAREST]

    a, b = in_turns(ours, plain, rounds)
    what = "the ten nearest of 1,000,000 enrolled photos, 64 faces at a time"
    return what, "faces/s", "a sort for each face", asked / a, 4 / b


def first_answer(rounds: int) -> float:
    """Median seconds of the whole interactive program with one photo typed, its gallery built before."""
    root = Path(__file__).resolve().parents[1]
    program = [sys.executable, "fasterrcnn_face_recognition.py"]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([*program, "--output", f"{folder}/out.png"], input="dataset/group_photo.jpg\n", text=True,
                           cwd=root, check=True, stdout=subprocess.DEVNULL)  # fmt: skip

    run()
    return statistics.median(seconds(run) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that each of a pair is run [5]")
    rounds = parser.parse_args().rounds
    print("| what | ours | plain | ratio |\n|---|---|---|---|")
    for measured in (
        mining(rounds),
        training_step(rounds),
        precision(rounds),
        embedding(rounds),
        finding_landmarks(rounds),
        detecting(rounds),
        chain(rounds),
        searching(min(rounds, 3)),
        prepare(min(rounds, 3)),
        drawing(min(rounds, 3)),
    ):
        what, unit, other, ours, plain = measured
        print(f"| {what} | {ours:,.1f} {unit} | {plain:,.1f} ({other}) | {ours / plain:.1f}× |", flush=True)
    print(f"\nA photo of 640×480 with one face, from its file to its name and picture: {whole_answer(rounds):.3f} s.\n"
          f"From starting the chain to its first answer: {first_answer(rounds):.1f} s.")  # fmt: skip


if __name__ == "__main__":
    main()
