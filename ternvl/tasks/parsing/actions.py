"""Parses the calls of GUI answers, such as `pyautogui.click(x=0.2346, y=0.381)`, into `Action`s. Nothing is evaluated.

The names are those of the data that InternVL3's GUI skills come from (AGUVIS): pyautogui's own functions and the
functions of a mobile device. A call is parsed by `ast`; its arguments must be literals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from ternvl.errors import UnparsableAnswer
from ternvl.tasks.parsing.boxes import pixel
from ternvl.tasks.results import Action, Point

_Field = Literal["x", "y", "from", "to", "text", "keys", "amount"]
_CLICK: dict[str, _Field] = {"x": "x", "y": "y", "clicks": "amount", "button": "text"}
_PLACE: dict[str, _Field] = {"x": "x", "y": "y"}
_DRAG: dict[str, _Field] = {"from_coord": "from", "to_coord": "to"}
_SCROLL: dict[str, _Field] = {"page": "amount", "x": "x", "y": "y"}
_TYPE: dict[str, _Field] = {"message": "text"}

ACTIONS: Mapping[str, Mapping[str, _Field]] = {
    "pyautogui.click": _CLICK,
    "pyautogui.doubleClick": _PLACE,
    "pyautogui.tripleClick": _PLACE,
    "pyautogui.rightClick": _PLACE,
    "pyautogui.middleClick": _PLACE,
    "pyautogui.moveTo": _PLACE,
    "pyautogui.mouseDown": _PLACE,
    "pyautogui.mouseUp": _PLACE,
    "pyautogui.dragTo": {**_PLACE, **_DRAG, "button": "text"},
    "pyautogui.scroll": _SCROLL,
    "pyautogui.hscroll": _SCROLL,
    "pyautogui.write": _TYPE,
    "pyautogui.typewrite": _TYPE,
    "pyautogui.press": {"keys": "keys"},
    "pyautogui.hotkey": {"keys": "keys"},
    "pyautogui.keyDown": {"key": "keys"},
    "pyautogui.keyUp": {"key": "keys"},
    "mobile.swipe": _DRAG,
    "mobile.home": {},
    "mobile.back": {},
    "mobile.wait": {"seconds": "amount"},
    "mobile.long_press": _PLACE,
    "mobile.open_app": {"app_name": "text"},
    "mobile.terminate": {"status": "text"},
    "browser.select_option": {**_PLACE, "value": "text"},
    "answer": {"text": "text"},
    "terminate": {"status": "text"},
}
"""For each function its parameters in their order, and the field of `Action` that each of them becomes."""

_OPTIONAL = {"x", "y", "clicks", "button", "from_coord", "to_coord"}
"""What functions of pyautogui may do without. All parameters of other functions are required."""

_ARGUMENTS = r"\((?:[^()'\"]|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\([^()]*\))*\)"
_CALL = re.compile(rf"(?<![\w.)])([A-Za-z_][\w.]*)({_ARGUMENTS})?", re.DOTALL | re.ASCII)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN_ESCAPES = set("\\'\"abfnrtvxuU\n")
_LONGEST, _LARGEST = 20_000, 1e9


def actions(text: str, size: tuple[int, int]) -> tuple[Action, ...]:
    """Return the calls of an answer, in their order, with places in pixels of an image of (width, height) `size`.

    Words around the calls are left out. Places are fractions of the image, or pixels if a coordinate is above 1. Raises
    UnparsableAnswer if there is no call, and for a function or an argument that the model does not have.
    """
    if len(text) > _LONGEST:
        raise UnparsableAnswer(f"has {len(text)} characters, more than {_LONGEST}", text)
    found: list[Action] = []
    for match in _CALL.finditer(text):
        name = match[1]
        if name in ACTIONS and text[match.end(1) :].startswith("("):
            found.append(_action(name, match[0], size, text))
        elif match[2] and ("." in name or _has_literals(match[0])):
            raise UnparsableAnswer(f"calls {name}, which is not an action", text)
    if not found:
        raise UnparsableAnswer("has no action", text)
    return tuple(found)


def _has_literals(call: str) -> bool:
    """Whether a text is a call whose arguments are literals, and no word of prose such as `item(s)`."""
    try:
        _arguments(_parsed(call))
    except ValueError:
        return False
    return True


def _action(name: str, call: str, size: tuple[int, int], text: str) -> Action:
    try:
        fields = _fields(name, *_arguments(_parsed(call)))
        point, end = _places(fields, size, is_drag=name == "pyautogui.dragTo")
    except ValueError as error:
        raise UnparsableAnswer(f"has a call of {name} that {error}", text) from None
    return Action(name, call, point, end, fields.get("text"), fields.get("keys", ()), fields.get("amount"))


def _parsed(call: str) -> ast.Call:
    """Return the syntax tree of a call. Raises ValueError, which continues a sentence about the call."""
    try:
        tree = ast.parse(_ESCAPE.sub(_kept, call), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("is not Python") from None
    if not isinstance(tree, ast.Call):
        raise ValueError("is not a call")
    return tree


def _kept(escape: re.Match[str]) -> str:
    """A backslash before a character with which it has no meaning stays one, as in a path of Windows."""
    return escape[0] if escape[1] in _KNOWN_ESCAPES else "\\" + escape[0]


def _arguments(call: ast.Call) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments of a call. Raises ValueError if one is not a literal."""
    try:
        named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
        positional = [ast.literal_eval(value) for value in call.args]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("has an argument that is not a literal") from None
    if len(named) < len(call.keywords):
        raise ValueError("has an argument that is not a literal")
    return positional, named


def _fields(name: str, positional: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments under the names of `_Field`, checked."""
    parameters = ACTIONS[name]
    if name == "pyautogui.hotkey" and positional:
        positional = [positional[0] if len(positional) == 1 else positional]
    if len(positional) > len(parameters):
        raise ValueError("has too many arguments")
    given = dict(zip(parameters, positional, strict=False))
    for key, value in named.items():
        if key not in parameters or key in given:
            raise ValueError(f"has an argument {key!r} that it must not have")
        given[key] = value
    is_free = name.startswith("pyautogui.")
    if missing := [key for key in parameters if key not in given and not (is_free and key in _OPTIONAL)]:
        raise ValueError(f"has no {missing[0]}")
    return {parameters[key]: _checked(parameters[key], value) for key, value in given.items()}


def _checked(field: _Field, value: Any) -> Any:
    match field:
        case "x" | "y":
            return _number(value)
        case "from" | "to":
            if not isinstance(value, list | tuple) or len(value) != 2:
                raise ValueError("has coordinates that are not two numbers")
            return tuple(map(_number, value))
        case "amount":
            return float(_number(value))
        case "keys":
            keys = [value] if isinstance(value, str) else value
            if not isinstance(keys, list | tuple) or not keys or not all(isinstance(key, str) and key for key in keys):
                raise ValueError("has keys that are not texts")
            return tuple(keys)
    if not isinstance(value, str):
        raise ValueError("has a text that is none")
    return value


def _number(value: Any) -> Fraction:
    """Return the decimal number that was written, which a float only comes close to."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
        raise ValueError("has a coordinate or an amount that is not a number, or too large")
    return Fraction(repr(value))


def _places(fields: Mapping[str, Any], size: tuple[int, int], *, is_drag: bool) -> tuple[Point | None, Point | None]:
    """Return where an action happens or begins, and where it ends."""
    if ("x" in fields) != ("y" in fields) or ("from" in fields) != ("to" in fields):
        raise ValueError("has only one of two coordinates")
    single = _pair((fields["x"], fields["y"]) if "x" in fields else None, size)
    first, last = _pair(fields.get("from"), size), _pair(fields.get("to"), size)
    if not is_drag:
        return first or single, last
    if last is None and single is None:
        raise ValueError("has no place to drag to")
    return first, last or single


def _pair(place: tuple[Fraction, Fraction] | None, size: tuple[int, int]) -> Point | None:
    if place is None:
        return None
    if max(place) <= 1:
        return pixel(*place, size)
    return pixel(place[0] / size[0], place[1] / size[1], size)
