"""The parts that the request schemas of all protocols share."""
