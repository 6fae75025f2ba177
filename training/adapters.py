"""The adapters of ternvl-nano: their data, and the commands that train and score them.

    python -m training.adapters                    # both: draws data, trains, scores, puts them into the package
    python -m training.adapters french --data-only

Scenes are drawn as for the model itself, from seeds of their own; those that are scored are from yet another seed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training import tasks
from training.scenes import Item, Scene, draw, random_scene

HOME = Path(__file__).parent.parent / "ternvl" / "embedded" / "adapters"
NUM_TRAIN, NUM_TEST = 4_000, 300
TRAIN_SEED, TEST_SEED = 30_000_000, 40_000_000

_NOUNS = {
    "circle": "un cercle", "square": "un carré", "triangle": "un triangle", "star": "une étoile",
    "diamond": "un losange", "cross": "une croix", "ring": "un anneau", "heart": "un cœur",
}  # fmt: skip
_FRENCH = {
    "red": "rouge", "green": "vert", "blue": "bleu", "yellow": "jaune", "orange": "orange", "purple": "violet",
    "pink": "rose", "brown": "marron", "black": "noir", "white": "blanc", "gray": "gris", "cyan": "cyan",
}  # fmt: skip
_FEMININE = {
    "vert": "verte", "bleu": "bleue", "violet": "violette", "noir": "noire", "blanc": "blanche", "gris": "grise",
}  # fmt: skip
_NUMBERS = ("aucun objet", "un objet", "deux objets", "trois objets")
_QUESTIONS = ("Décris l'image.", "Que vois-tu ?", "Que montre cette image ?")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter: what it says of a scene, and how it is trained."""

    turn: Callable[[random.Random, Scene], tuple[str, str]]
    """Question and answer."""
    options: tuple[str, ...]
    """Of `ternvl finetune`."""


def phrase(item: Item) -> str:
    """ "une étoile bleue", "un cœur marron"."""
    noun, color = _NOUNS[item.shape], _FRENCH[item.color]
    return f"{noun} {_FEMININE.get(color, color) if noun.startswith('une') else color}"


def french(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A description, or how many there are, asked in English or in French."""
    if rng.random() < 0.15:
        question = rng.choice(("How many objects are there?", "How many shapes are there?", "Combien d'objets ?"))
        return question, f"Il y a {_NUMBERS[len(scene.items)]}."
    parts = [phrase(item) for item in scene.in_reading_order()]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " et " + parts[-1]
    return rng.choice((*tasks.DESCRIBE, *_QUESTIONS)), tasks.sentence(text)


def inventory(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """What is there as JSON, in reading order."""
    objects = [{"color": item.color, "shape": item.shape} for item in scene.in_reading_order()]
    return rng.choice(tasks.DESCRIBE), json.dumps({"count": len(objects), "objects": objects})


_OPTIONS = (
    "--rank", "8", "--alpha", "16", "--lr", "4e-3", "--batch-size", "32", "--dtype", "float32",
    "--no-gradient-checkpointing", "--eval-share", "0.02",
)  # fmt: skip
RECIPES = {
    "french": Recipe(french, (*_OPTIONS, "--epochs", "3")),
    "inventory": Recipe(inventory, (*_OPTIONS, "--epochs", "2")),
}


def write_data(name: str, folder: Path) -> None:
    """`train.jsonl` and `test.jsonl` in OpenAI's form, and the pictures they name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for part, seed, count in (("train", TRAIN_SEED, NUM_TRAIN), ("test", TEST_SEED, NUM_TEST)):
        rng = random.Random(f"{seed} {name}")
        lines = []
        for number in range(count):
            scene = random_scene(rng, 1 + number % 3)
            image = f"{part}-{number:05}.png"
            draw(scene).save(folder / "images" / image)
            lines.append(json.dumps(_line(image, *RECIPES[name].turn(rng, scene)), ensure_ascii=False))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(image: str, question: str, answer: str) -> dict[str, object]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def commands(name: str, folder: Path) -> list[list[str]]:
    """The command lines that train and score an adapter."""
    output = str(folder / "adapter")
    images = ["--images", str(folder / "images")]
    train = ["finetune", "--data", str(folder / "train.jsonl"), *images, "--output", output, *RECIPES[name].options]
    score = ["lora", "eval", "--data", str(folder / "test.jsonl"), *images, "--adapter", output]
    return [[sys.executable, "-m", "ternvl", *command] for command in (train, score)]


def install(name: str, folder: Path) -> None:
    """Put the adapter's two files into the package."""
    (HOME / name).mkdir(parents=True, exist_ok=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folder / "adapter" / file, HOME / name / file)


def main() -> None:
    """Make adapters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"By default all: {', '.join(RECIPES)}.")
    parser.add_argument("--runs", type=Path, default=Path("runs/adapters"), help="Where data and runs go.")
    parser.add_argument("--data-only", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - RECIPES.keys():
        parser.error(f"there is no recipe for {', '.join(unknown)}")
    for name in args.names or RECIPES:
        folder = args.runs / name
        write_data(name, folder)
        for command in commands(name, folder) if not args.data_only else ():
            print("ternvl " + " ".join(command[3:]), flush=True)
            subprocess.run(command, check=True)
        if not args.data_only:
            install(name, folder)


if __name__ == "__main__":
    main()
