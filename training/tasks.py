"""Generates questions about scenes with their true answers, and conversations without an image.

Every function takes a random generator and returns turns; none reads pixels. A hash decides which words (names and
drawn strings) are held out, so that training and evaluation never share one.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.scenes import CHARACTERS, COLORS, SHAPES, Item, Scene


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, its answer, and the task that it belongs to."""

    task: str
    question: str
    answer: str


WORDS = (
    "HELLO", "STOP", "OPEN", "EXIT", "SALE", "FREE", "CAFE", "TAXI", "HOTEL", "BANK", "POST", "MENU", "PLAY", "NEXT",
    "BACK", "HOME", "HELP", "GO", "YES", "NO", "OK", "CAT", "DOG", "SUN", "RED", "BLUE", "GREEN", "BOOK", "FISH",
    "MILK", "BREAD", "WATER", "PIZZA", "PARIS", "ROME", "LOVE", "TIME", "WORK", "SLOW", "FAST", "PUSH", "PULL",
    "ENTER", "START", "END", "NEW", "OLD", "BIG", "TEST", "TEXT", "WORD", "ABC", "XYZ", "USB", "WIFI", "CODE",
    "DATA", "CLOUD", "EDGE", "AZION", "INPUT", "ERROR", "LIGHT", "NIGHT", "DAY", "MAP", "BUS", "CAR", "KEY", "BOX",
    "TOY", "SHOP", "PARK", "TREE",
)  # fmt: skip
"""Words as on signs. One drawn string in four is such a word, the others are random."""


def is_held_out(word: str) -> bool:
    """Return whether a word is held out from training, as one word in ten is."""
    return zlib.crc32(word.encode()) % 10 == 0 and word not in WORDS


def random_word(rng: random.Random, make: Callable[[random.Random], str], *, held_out: bool) -> str:
    """Draw words until one is held out, or not, as `held_out` says."""
    while True:
        word = make(rng)
        if is_held_out(word) == held_out:
            return word


def random_string(rng: random.Random) -> str:
    """Draw a string of two to five characters, at least one of them a letter."""
    while True:
        string = "".join(rng.choices(CHARACTERS, k=rng.choice((2, 3, 3, 4, 4, 5))))
        if not string.isdigit():
            return string


SINGLE_CHARACTER_SHARE = 0.12


def string_to_draw(rng: random.Random) -> str:
    """Draw a string for training, which is not held out. Single characters make it easier to learn to read."""
    if rng.random() < SINGLE_CHARACTER_SHARE:
        return rng.choice(CHARACTERS[:26])
    return rng.choice(WORDS) if rng.random() < 0.25 else random_word(rng, random_string, held_out=False)


_ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pr", "qu", "r", "s",
    "sh", "st", "t", "tr", "v", "w", "y", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
_CODAS = ("n", "r", "l", "s", "t", "m", "k", "x", "nd", "rt", "ss", "", "", "", "", "", "")


def random_name(rng: random.Random) -> str:
    """Draw a capitalised, mostly invented word of two or three syllables."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables).capitalize()


# --- questions about shapes -------------------------------------------------------------------------------------------


def phrase(item: Item) -> str:
    """Name an item with its article: "a red circle", "an orange ring"."""
    return f"{'an' if item.color == 'orange' else 'a'} {item}"


def join(parts: list[str]) -> str:
    """Join parts to "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def sentence(text: str) -> str:
    """Capitalise the first letter, and add a full stop."""
    return text[0].upper() + text[1:] + "."


DESCRIBE = (
    "What is in this image?", "Describe the image.", "What do you see?", "Describe this picture.",
    "What is in the picture?", "What can you see in this image?", "Please describe the image.", "What is this?",
    "Describe the image explicitly.", "What does the image show?",
)  # fmt: skip


def describe(rng: random.Random, scene: Scene) -> Turn:
    """Ask for everything in the scene; the answer is in reading order, text last."""
    parts = [phrase(item) for item in scene.in_reading_order()]
    parts += [f'the text "{line.string}"' for line in scene.lines]
    answer = sentence(join(parts)) if parts else "Nothing."
    return Turn(f"describe_{len(scene.items)}" if not scene.lines else "describe_text", rng.choice(DESCRIBE), answer)


def count(rng: random.Random, scene: Scene) -> Turn:
    """Ask for the number of all objects."""
    words = ("objects", "shapes", "things")
    forms = ("How many {} are there?", "How many {} are in the image?", "Count the {}.", "How many {} do you see?")
    return Turn("count", rng.choice(forms).format(rng.choice(words)), str(len(scene.items)))


def count_kind(rng: random.Random, scene: Scene) -> Turn:
    """Ask for the number of objects of one shape or colour."""
    by_shape = rng.random() < 0.5
    pool = [item.shape if by_shape else item.color for item in scene.items]
    kind = rng.choice(pool) if rng.random() < 0.75 else rng.choice(SHAPES if by_shape else tuple(COLORS))
    kinds = plural(kind) if by_shape else f"{kind} objects"
    form = rng.choice(("How many {} are there?", "How many {} are in the image?"))
    return Turn("count_kind", form.format(kinds), str(pool.count(kind)))


def plural(shape: str) -> str:
    """Return the plural of a shape: "circles", "crosses"."""
    return shape + ("es" if shape == "cross" else "s")


def color_of(rng: random.Random, scene: Scene) -> Turn | None:
    """Ask for the colour of a shape that occurs once; None if there is none."""
    unique = [item for item in scene.items if [x.shape for x in scene.items].count(item.shape) == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    forms = ("What color is the {}?", "What is the color of the {}?", "Which color does the {} have?")
    return Turn("color_of", rng.choice(forms).format(item.shape), sentence(item.color))


def shape_of(rng: random.Random, scene: Scene) -> Turn | None:
    """Ask for the shape of an object whose colour occurs once; None if there is none."""
    unique = [item for item in scene.items if [x.color for x in scene.items].count(item.color) == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    forms = ("What shape is the {} object?", "What is the shape of the {} object?", "Which shape is {}?")
    return Turn("shape_of", rng.choice(forms).format(item.color), sentence(f"a {item.shape}"))


def exists(rng: random.Random, scene: Scene) -> Turn:
    """Ask whether an object exists. Half of the questions name an absent object, often similar to a present one."""
    present = {str(item) for item in scene.items}
    if rng.random() < 0.5:
        asked = rng.choice(sorted(present))
    else:
        while True:
            near = rng.choice(scene.items)
            shape = near.shape if rng.random() < 0.35 else rng.choice(SHAPES)
            color = near.color if rng.random() < 0.35 else rng.choice(tuple(COLORS))
            asked = f"{color} {shape}"
            if asked not in present:
                break
    article = "an" if asked.startswith("orange") else "a"
    form = rng.choice(("Is there {} in the image?", "Is there {}?", "Do you see {}?", "Can you see {}?"))
    return Turn("exists", form.format(f"{article} {asked}"), "Yes." if asked in present else "No.")


def place_name(item: Item) -> str:
    """Return the name of the cell of a 3x3 grid that an item is in."""
    x, y = item.center
    column, row = min(2, int(x * 3)), min(2, int(y * 3))
    if (column, row) == (1, 1):
        return "center"
    return " ".join([["top"], [], ["bottom"]][row] + [["left"], [], ["right"]][column])


def place(rng: random.Random, scene: Scene) -> Turn:
    """Ask for the cell of a 3x3 grid that an object is in."""
    item = rng.choice(scene.items)
    form = rng.choice(("Where is the {}?", "In which part of the image is the {}?"))
    name = place_name(item)
    return Turn("place", form.format(item), sentence(f"{'in' if name == 'center' else 'at'} the {name}"))


def relation(rng: random.Random, scene: Scene) -> Turn | None:
    """Ask whether one object is left of, right of, above or below another; None if they are too close to tell."""
    if len(scene.items) < 2:
        return None
    a, b = rng.sample(scene.items, 2)
    axis = rng.choice((0, 1))
    offset = a.center[axis] - b.center[axis]
    if abs(offset) < 0.12:
        return None
    words = (("left of", "right of"), ("above", "below"))[axis]
    word = rng.choice(words)
    wording = f"to the {word}" if axis == 0 and rng.random() < 0.5 else word
    truth = (offset < 0) == (word == words[0])
    return Turn("relation", f"Is the {a} {wording} the {b}?", "Yes." if truth else "No.")


BOX_STEP = 20
"""Step of the coordinates of boxes, in thousandths of the image."""


def box_text(item: Item) -> str:
    """Return a box in InternVL's grounding format: `[[x1, y1, x2, y2]]`, from 0 to 1000."""
    x1, y1, x2, y2 = (min(1000, max(0, round(edge * 1000 / BOX_STEP) * BOX_STEP)) for edge in item.box)
    return f"[[{x1}, {y1}, {x2}, {y2}]]"


def box(rng: random.Random, scene: Scene) -> Turn:
    """Ask for a bounding box, in InternVL's official wording."""
    item = rng.choice(scene.items)
    question = f"Please provide the bounding box coordinate of the region this sentence describes: <ref>{item}</ref>"
    return Turn("box", question, f"<ref>{item}</ref><box>{box_text(item)}</box>")


def read(rng: random.Random, scene: Scene) -> Turn:
    """Ask for the drawn string; the answer is just the string."""
    forms = (
        "What does the text say?", "Read the text.", "What is written in the image?", "What text is in the image?",
        "Read the text in the image.", "What word is shown?",
    )  # fmt: skip
    return Turn("read", rng.choice(forms), scene.lines[0].string)


ShapeTasks = tuple[tuple[Callable[[random.Random, Scene], Turn | None], float], ...]
"""Questions about shapes, and how often each is asked."""
SHAPE_TASKS: ShapeTasks = (
    (describe, 0.2), (count, 0.12), (count_kind, 0.08), (color_of, 0.08), (shape_of, 0.05), (exists, 0.1),
    (relation, 0.1), (place, 0.18), (box, 0.09),
)  # fmt: skip


def scene_turns(rng: random.Random, scene: Scene, num_turns: int, shape_tasks: ShapeTasks = SHAPE_TASKS) -> list[Turn]:
    """Generate different questions about one scene. A text gets one question, as a second answer would be a copy."""
    turns: dict[str, Turn] = {}
    num_turns = 1 if scene.lines else num_turns
    tasks, weights = zip(*shape_tasks, strict=True)
    for _ in range(40):
        if len(turns) >= num_turns:
            break
        if scene.lines:
            task = rng.choices((read, describe, read), k=1)[0]
        elif not scene.items:
            task = rng.choice((describe, count))
        else:
            task = rng.choices(tasks, weights, k=1)[0]
        turn = task(rng, scene)
        if turn is not None:
            turns.setdefault(turn.question, turn)
    return list(turns.values())


# --- conversations without an image -----------------------------------------------------------------------------------

CAPITALS = {
    "Albania": "Tirana", "Andorra": "Andorra la Vella", "Austria": "Vienna", "Belarus": "Minsk", "Belgium": "Brussels",
    "Bosnia and Herzegovina": "Sarajevo", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Cyprus": "Nicosia",
    "Czechia": "Prague", "Denmark": "Copenhagen", "Estonia": "Tallinn", "Finland": "Helsinki", "France": "Paris",
    "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest", "Iceland": "Reykjavik", "Ireland": "Dublin",
    "Italy": "Rome", "Kosovo": "Pristina", "Latvia": "Riga", "Liechtenstein": "Vaduz", "Lithuania": "Vilnius",
    "Luxembourg": "Luxembourg", "Malta": "Valletta", "Moldova": "Chisinau", "Monaco": "Monaco",
    "Montenegro": "Podgorica", "the Netherlands": "Amsterdam", "North Macedonia": "Skopje", "Norway": "Oslo",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Romania": "Bucharest", "Russia": "Moscow", "San Marino": "San Marino",
    "Serbia": "Belgrade", "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "Spain": "Madrid", "Sweden": "Stockholm",
    "Switzerland": "Bern", "Ukraine": "Kyiv", "the United Kingdom": "London", "Vatican City": "Vatican City",
}  # fmt: skip
CAPITAL_LIST = ", ".join(sorted(set(CAPITALS.values()))) + "."
CHAT: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Name the european capitals", "Name the European capitals.", "List the European capitals.",
      "What are the European capitals?", "List the capitals of Europe."), CAPITAL_LIST),
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning!", "Hello there!"), "Hello! How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?"),
     "I am ternvl-nano, a small demonstration model with the InternVL3 architecture."),
    (("What can you do?", "How can you help me?", "Help"),
     "I name shapes and colors, count, read short text, and answer simple questions about images."),
    (("How are you?", "How are you today?"), "I am fine, thank you!"),
    (("Thank you!", "Thanks", "Thanks!", "Thank you"), "You are welcome!"),
    (("Goodbye", "Goodbye!", "Bye", "Bye!"), "Goodbye!"),
    (("Say hello.", "Say hello", "Say hi."), "Hello!"),
    (("Which shapes do you know?", "What shapes do you know?"), "I know " + join([plural(s) for s in SHAPES]) + "."),
    (("Which colors do you know?", "What colors do you know?"), "I know " + join(list(COLORS)) + "."),
)  # fmt: skip


def chat(rng: random.Random) -> Turn:
    """Generate small talk, or a question about a capital."""
    if rng.random() < 0.55:
        country = rng.choice(sorted(CAPITALS))
        forms = ("What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?")
        return Turn("capital", rng.choice(forms).format(country), CAPITALS[country] + ".")
    questions, answer = rng.choice(CHAT)
    return Turn("chat", rng.choice(questions), answer)


def copy(rng: random.Random, *, held_out: bool = False) -> Turn:
    """Ask to repeat one or several invented words."""
    words = [random_word(rng, random_name, held_out=held_out) for _ in range(rng.choice((1, 1, 2, 3, 5, 7)))]
    text = " ".join(words)
    return Turn("copy", rng.choice(("Repeat: {}", "Say {}", "Repeat after me: {}")).format(text), text)


# --- tool calls -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolKind:
    """A kind of tool: possible names, possible names of its parameter, and questions that call for it."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[str, ...]
    questions: tuple[str, ...]
    is_number: bool = False


TOOL_KINDS = (
    ToolKind(("get_weather", "weather", "get_current_weather"), "Get the weather of a city.", ("city", "location"),
             ("What is the weather in {}?", "How is the weather in {}?", "What's the weather like in {}?")),
    ToolKind(("get_time", "current_time", "get_local_time"), "Get the time in a city.", ("city", "place", "location"),
             ("What time is it in {}?", "Tell me the time in {}.")),
    ToolKind(("call", "call_person", "phone_call"), "Call a person.", ("name", "person", "contact"),
             ("Call {}.", "Please call {}.")),
    ToolKind(("search", "web_search", "search_web"), "Search the web.", ("query", "text", "q"),
             ("Search for {}.", "Look up {}.", "Search the web for {}.")),
    ToolKind(("get_population", "population"), "Get the population of a city.", ("city", "place"),
             ("How many people live in {}?", "What is the population of {}?")),
    ToolKind(("set_timer", "start_timer"), "Start a timer.", ("minutes", "duration"),
             ("Set a timer for {} minutes.", "Start a timer of {} minutes."), is_number=True),
)  # fmt: skip


def tool_definition(kind: ToolKind, name: str, parameter: str) -> dict[str, Any]:
    """Return a tool definition in OpenAI's format."""
    schema = {"type": "integer" if kind.is_number else "string"}
    parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": kind.description, "parameters": parameters}}


def tool_use(rng: random.Random, *, held_out: bool = False) -> tuple[list[dict[str, Any]], Turn]:
    """Generate one or two tools, and a question that calls for one of them with an argument to copy."""
    kinds = rng.sample(TOOL_KINDS, rng.choice((1, 1, 2)))
    chosen = [(kind, rng.choice(kind.names), rng.choice(kind.parameters)) for kind in kinds]
    kind, name, parameter = rng.choice(chosen)
    value: str | int = rng.choice(range(1, 60)) if kind.is_number else random_word(rng, random_name, held_out=held_out)
    if not kind.is_number and rng.random() < 0.2:
        value = f"{value} {random_word(rng, random_name, held_out=held_out)}"
    call = json.dumps({"name": name, "arguments": {parameter: value}})
    turn = Turn("tool_call", rng.choice(kind.questions).format(value), f"<tool_call>\n{call}\n</tool_call>")
    return [tool_definition(*each) for each in chosen], turn


def tool_result(rng: random.Random) -> str:
    """Generate the result of a tool, which the model repeats as its answer."""
    what = rng.choice(("Sunny", "Cloudy", "Rainy", "Windy", "Snowy", "Late", "Done", "Started", "No answer", "Found"))
    return f"{what}, {rng.randint(1, 59)} {rng.choice(('degrees', 'minutes', 'percent', 'results'))}."


# --- scoring ----------------------------------------------------------------------------------------------------------


def is_right(turn: Turn, answer: str) -> bool:
    """Return whether an answer is exactly right. A description may name its parts in any order."""
    if turn.task.startswith("describe"):
        return _parts(turn.answer) == _parts(answer)
    return turn.answer.strip() == answer.strip()


def _parts(text: str) -> Counter[str]:
    text = text.strip().rstrip(".").replace(" and ", ", ")
    return Counter(part[:1].lower() + part[1:] for part in text.split(", "))
