"""The adapters of ternvl-nano: generates their data, and runs the commands that train and score them.

    python -m training.adapters                    # all: generate data, train, install into the package, score
    python -m training.adapters french --data-only
    python -m training.adapters --score 123        # only score the package's adapters, on scenes of another seed

Scenes are generated as for the model itself, from other seeds; the scenes for scoring have another seed again.
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

import torch
from safetensors.torch import load_file, save_file

from training import tasks
from training.scenes import Item, Scene, draw, random_scene

HOME = Path(__file__).parent.parent / "ternvl" / "embedded" / "adapters"
NUM_TRAIN, NUM_TEST = 3_000, 300
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
    """One adapter: its answers about a scene, and the options of its training."""

    turn: Callable[[random.Random, Scene], tuple[str, str]]
    """Returns a question about the scene and its answer."""
    options: tuple[str, ...]
    """Options of `ternvl finetune`."""


def phrase(item: Item) -> str:
    """Name an item in French: "une étoile bleue", "un cœur marron"."""
    noun, color = _NOUNS[item.shape], _FRENCH[item.color]
    return f"{noun} {_FEMININE.get(color, color) if noun.startswith('une') else color}"


def french(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Return a question in English or French, for a description or a count, and its French answer."""
    if rng.random() < 0.15:
        question = rng.choice(("How many objects are there?", "How many shapes are there?", "Combien d'objets ?"))
        return question, f"Il y a {_NUMBERS[len(scene.items)]}."
    parts = [phrase(item) for item in scene.in_reading_order()]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " et " + parts[-1]
    return rng.choice((*tasks.DESCRIBE, *_QUESTIONS)), tasks.sentence(text)


def inventory(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Return a question, and its answer as JSON with the objects in reading order."""
    objects = [str(item) for item in scene.in_reading_order()]
    return rng.choice(tasks.DESCRIBE), json.dumps({"count": len(objects), "objects": objects})


_OPTIONS = (
    "--rank", "8", "--alpha", "16", "--batch-size", "16", "--dtype", "float32",
    "--no-gradient-checkpointing", "--eval-share", "0.02", "--target", "language", "--target", "head",
)  # fmt: skip
RECIPES = {
    "french": Recipe(french, (*_OPTIONS, "--lr", "2.5e-3", "--epochs", "3")),
    "inventory": Recipe(inventory, (*_OPTIONS, "--lr", "2e-3", "--epochs", "1.5")),
}


def write_data(
    name: str, folder: Path, *, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, test_seed: int = TEST_SEED
) -> None:
    """Write `train.jsonl` and `test.jsonl` in OpenAI's format, and their pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for part, seed, count in (("train", TRAIN_SEED, num_train), ("test", test_seed, num_test)):
        rng = random.Random(f"{seed} {name}")
        lines = []
        for number in range(count):
            scene = random_scene(rng, 1 + number % 3)
            image = f"{part}-{number:05}.png"
            draw(scene).save(folder / "images" / image)
            lines.append(json.dumps(_line(image, *RECIPES[name].turn(rng, scene)), ensure_ascii=False))
        (folder / f"{part}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _line(image: str, question: str, answer: str) -> dict[str, object]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def train_command(name: str, folder: Path) -> list[str]:
    """Return the arguments of `ternvl` that train an adapter."""
    data = ["--data", str(folder / "train.jsonl"), "--images", str(folder / "images")]
    return ["finetune", *data, "--output", str(folder / "adapter"), *RECIPES[name].options]


def score_command(name: str, folder: Path) -> list[str]:
    """Return the arguments of `ternvl` that score the base model and the package's adapter."""
    data = ["--data", str(folder / "test.jsonl"), "--images", str(folder / "images")]
    return ["lora", "eval", *data, "--adapter", str(HOME / name)]


def install(name: str, folder: Path) -> None:
    """Copy the adapter into the package, with its tensors in bfloat16 like the model's."""
    (HOME / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "adapter" / "adapter_config.json", HOME / name / "adapter_config.json")
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    short = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    save_file(short, HOME / name / "adapter_model.safetensors", metadata={"format": "pt"})


def run(arguments: list[str]) -> None:
    """Print and run a command of `ternvl`."""
    print("ternvl " + " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "ternvl", *arguments], check=True)


def main() -> None:
    """Train and score the adapters named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"Adapters to make; by default all: {', '.join(RECIPES)}."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/adapters"), help="Folder for data and runs.")
    parser.add_argument("--data-only", action="store_true", help="Only generate the data.")
    parser.add_argument(
        "--score", type=int, metavar="SEED", help="Only score the package's adapters, on scenes of this seed."
    )
    args = parser.parse_args()
    if unknown := set(args.names) - RECIPES.keys():
        parser.error(f"there is no recipe for {', '.join(unknown)}")
    for name in args.names or RECIPES:
        folder = args.runs / name
        if args.score is not None:
            folder = args.runs / f"{name}-{args.score}"
            write_data(name, folder, num_train=0, test_seed=args.score)
            run(score_command(name, folder))
            continue
        write_data(name, folder)
        if not args.data_only:
            run(train_command(name, folder))
            install(name, folder)
            run(score_command(name, folder))


if __name__ == "__main__":
    main()
