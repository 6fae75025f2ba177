"""The forms of answers: grounding boxes, calls of a GUI agent, short answers and JSON. Nothing is evaluated."""
