"""`Azion.AI.run`, over a server or in this process."""

from ternvl.azion.run import Azion, AzionError, AzionStream, EventDecoder

__all__ = ["Azion", "AzionError", "AzionStream", "EventDecoder"]
