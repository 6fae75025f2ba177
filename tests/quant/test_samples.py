"""The samples for calibrating and comparing models."""

from pathlib import Path

import pytest
from PIL import Image

from ternvl.errors import ConfigError
from ternvl.quant.passages import PASSAGES
from ternvl.quant.samples import MORE_TEXTS, QUESTIONS, TEXTS, digest, samples, samples_to_compare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    (tmp_path / "text.txt").write_text("What is the capital of Spain?")
    (tmp_path / "notes.pdf").write_text("neither an image nor a text")
    return tmp_path


def test_the_built_in_samples() -> None:
    names = [sample.name for sample in samples()]
    assert names == ["picture 1", "picture 2", "picture 3", *(f"text {i}" for i in range(1, len(TEXTS + PASSAGES) + 1))]


def test_a_folder_gives_its_images_and_then_its_texts(folder: Path) -> None:
    assert [sample.name for sample in samples(folder)] == ["red.png", "text.txt"]
    assert samples(folder)[1].conversation == [{"role": "user", "content": "What is the capital of Spain?"}]


def test_models_are_compared_on_each_picture_with_each_question(folder: Path) -> None:
    built_in = samples_to_compare()
    assert len(built_in) == 3 * len(QUESTIONS) + len(TEXTS + MORE_TEXTS)
    assert samples_to_compare(folder) == built_in + samples(folder)


def test_the_digest_follows_the_content(folder: Path) -> None:
    before = digest(folder)
    assert before == digest(folder) != digest()
    (folder / "text.txt").write_text("What is the capital of France?")
    assert digest(folder) != before


def test_a_folder_needs_an_image_and_a_text(folder: Path) -> None:
    (folder / "red.png").unlink()
    with pytest.raises(ConfigError, match="it has 0 images and 1 texts"):
        samples(folder)
