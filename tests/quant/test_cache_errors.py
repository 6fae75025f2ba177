"""The measured error of attention over an 8-bit cache, compared with its definition."""

import pytest
import torch

from ternvl.config import LanguageConfig
from ternvl.model.attention import CausalAttention
from ternvl.quant.cache_errors import MeasuredAttention, over_int8
from ternvl.quant.tries import relative_error


def qkv(config: LanguageConfig, num_tokens: int) -> list[torch.Tensor]:
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [torch.randn(num_tokens, count, config.head_dim) for count in heads]


def test_the_answer_is_exact_and_the_error_is_that_of_8_bits() -> None:
    torch.manual_seed(0)
    config = LanguageConfig(64, 2, 4, 2, 96, vocab_size=61)
    attention, (q, k, v) = MeasuredAttention(config), qkv(config, 40)
    wanted = CausalAttention()(1, q, k, v)
    assert torch.equal(attention(1, q, k, v), wanted)
    error = relative_error(over_int8(config, 40)(1, q, k, v), wanted)
    assert 0 < error < 0.02
    assert attention.errors() == {1: pytest.approx(error, rel=1e-9)}


def test_head_sizes_that_the_cache_does_not_support_are_not_measured() -> None:
    config = LanguageConfig(32, 1, 4, 2, 96, vocab_size=61)  # a head has 8 dimensions
    attention = MeasuredAttention(config)
    attention(0, *qkv(config, 5))
    assert attention.errors() == {}
