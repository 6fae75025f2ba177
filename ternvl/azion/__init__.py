"""`Azion.AI.run`: requests to a model, which a server or this process answers."""

from ternvl.azion.run import Azion, AzionError, AzionStream, EventDecoder

__all__ = ["Azion", "AzionError", "AzionStream", "EventDecoder"]
