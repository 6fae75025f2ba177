"""The clients people use, each behind the same few verbs. A client that is not installed raises ImportError."""

from __future__ import annotations

from typing import Any

from tests.clients.adapters.anthropic_messages import AnthropicMessages
from tests.clients.adapters.curl import Curl
from tests.clients.adapters.langchain import LangChain
from tests.clients.adapters.litellm import LiteLLM
from tests.clients.adapters.node import OpenAINode, VercelAI
from tests.clients.adapters.openai_chat import OpenAIAsync, OpenAIChat
from tests.clients.adapters.openai_responses import OpenAIResponses

CLIENTS: tuple[type[Any], ...] = (
    OpenAIChat, OpenAIAsync, OpenAIResponses, OpenAINode, VercelAI, LangChain, LiteLLM, AnthropicMessages, Curl,
)  # fmt: skip
