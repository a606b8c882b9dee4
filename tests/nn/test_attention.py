from __future__ import annotations

import math

import diffusers.models.attention_processor as theirs
import pytest
import torch

from safelight.errors import ConfigError
from safelight.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
)
from safelight.nn.attention import attention, split_heads

from ..helpers.compare import relative_difference
from ..helpers.repositories import randomise

SPATIAL = {"heads": 4, "dim_head": 4, "norm_num_groups": 4, "residual_connection": True, "bias": True}
ADDED = {"cross_attention_dim": 16, "added_kv_proj_dim": 12, "heads": 2, "dim_head": 8, "norm_num_groups": 4}

# name -> options of the constructor, width of the context (None: self-attention)
LAYOUTS = {
    "self": ({"heads": 2, "dim_head": 8}, None),
    "cross": ({"cross_attention_dim": 12, "heads": 2, "dim_head": 8}, 12),
    "spatial": (SPATIAL, None),
    "spatial, rescaled": ({**SPATIAL, "rescale_output_factor": 1.4, "eps": 1e-3}, None),
    "unscaled": ({"heads": 2, "dim_head": 8, "scale_qk": False}, None),
    "context, layer norm": ({"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"}, 12),
    "context, group norm": (
        {"cross_attention_dim": 12, "cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 3},
        12,
    ),
    "without bias": ({"out_bias": False}, None),
    "added keys": (ADDED, 12),
    "added keys only": ({**ADDED, "only_cross_attention": True}, 12),
}
BUILT_IN = [theirs.AttnProcessor, theirs.AttnProcessor2_0, theirs.SlicedAttnProcessor]


def _case(name: str) -> tuple[Attention, theirs.Attention, list[torch.Tensor]]:
    options, width = LAYOUTS[name]
    reference = theirs.Attention(16, **options)
    if "added_kv_proj_dim" in options:
        reference.set_processor(theirs.AttnAddedKVProcessor2_0())
    randomise(reference)
    ours = Attention(16, **options)
    ours.load_state_dict(reference.state_dict())
    spatial = "norm_num_groups" in options
    x = torch.randn((2, 16, 3, 5) if spatial else (2, 15, 16), generator=torch.Generator().manual_seed(1))
    context = [] if width is None else [torch.randn((2, 7, width), generator=torch.Generator().manual_seed(2))]
    return ours.eval(), reference.eval(), [x, *context]


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_as_the_reference(name: str) -> None:
    ours, reference, arguments = _case(name)
    with torch.no_grad():
        assert relative_difference(ours(*arguments), reference(*arguments)) <= 1e-5


@pytest.mark.parametrize("processor", BUILT_IN, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if "added" not in name and name != "unscaled"])
def test_processors_of_the_reference_run_here(name: str, processor: type) -> None:
    ours, reference, arguments = _case(name)
    ours.set_processor(processor(1) if processor is theirs.SlicedAttnProcessor else processor())
    with torch.no_grad():
        assert relative_difference(ours(*arguments), reference(*arguments)) <= 1e-5


@pytest.mark.parametrize("processor", [theirs.AttnAddedKVProcessor, theirs.AttnAddedKVProcessor2_0])
def test_processors_of_added_keys_run_here(processor: type) -> None:
    ours, reference, arguments = _case("added keys")
    ours.set_processor(processor())
    with torch.no_grad():
        assert relative_difference(ours(*arguments), reference(*arguments)) <= 1e-5


def test_a_mask_hides_keys() -> None:
    ours, _, (x, context) = _case("cross")
    mask = torch.zeros(2, 1, 7)
    mask[:, :, 4:] = -10000.0
    with torch.no_grad():
        expected = ours(x, context[:, :4])
        assert torch.allclose(ours(x, context, mask), expected, atol=1e-6)
        # The same, as processors written elsewhere prepare it: once per head.
        assert torch.allclose(ours(x, context, ours.prepare_attention_mask(mask, 7, 2)), expected, atol=1e-6)


@pytest.mark.parametrize("out_dim", [3, 4])
@pytest.mark.parametrize("length", [7, 5])
def test_masks_are_prepared_as_in_the_reference(out_dim: int, length: int) -> None:
    ours, reference, _ = _case("cross")
    mask = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0))
    for batch in (1, 2):
        expected = reference.prepare_attention_mask(mask, length, batch, out_dim)
        assert torch.equal(ours.prepare_attention_mask(mask, length, batch, out_dim), expected)
    assert ours.prepare_attention_mask(None, length, 2) is None


def test_scores_are_probabilities_and_heads_go_back_and_forth() -> None:
    ours, reference, (x,) = _case("self")
    heads = ours.head_to_batch_dim(x)
    assert torch.equal(heads, reference.head_to_batch_dim(x))
    assert torch.equal(ours.head_to_batch_dim(x, 4), reference.head_to_batch_dim(x, 4))
    assert torch.equal(ours.batch_to_head_dim(heads), x)
    scores = ours.get_attention_scores(heads, heads)
    assert torch.allclose(scores.sum(-1), torch.ones(4, 15))
    assert torch.allclose(scores, reference.get_attention_scores(heads, heads), atol=1e-6)


def test_attention_is_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 4, generator=draw, dtype=torch.float64) for length in (3, 5, 5))
    expected = (q @ k.mT / math.sqrt(4)).softmax(-1) @ v
    assert torch.allclose(attention(q, k, v), expected)
    mask = torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0], dtype=torch.float64).expand(1, 1, 3, 5)
    keep = [0, 1, 3, 4]
    assert torch.allclose(attention(q, k, v, mask), attention(q, k[:, :, keep], v[:, :, keep]))
    assert torch.allclose(attention(q, k, v, scale=1.0), (q @ k.mT).softmax(-1) @ v)
    assert split_heads(torch.zeros(2, 3, 8), 4).shape == (2, 4, 3, 2)


def test_names() -> None:
    assert AttnProcessor is AttnProcessor2_0
    assert AttnAddedKVProcessor is AttnAddedKVProcessor2_0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only_cross_attention": True}, "only_cross_attention.*added_kv_proj_dim"),
        ({"cross_attention_norm": "batch_norm"}, "cross_attention_norm.*batch_norm"),
        ({"norm_num_groups": 5}, "norm_num_groups is 5.*16"),
        ({"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 5}, "norm_num_groups is 5"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Attention(16, **options)


class Gain(torch.nn.Module):
    """A processor with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    def forward(
        self, attn: Attention, hidden_states: torch.Tensor, bias: float = 0.0, **kwargs: object
    ) -> torch.Tensor:
        return self.gain * hidden_states + bias


def test_a_processor_with_weights_brings_and_takes_them() -> None:
    ours, _, (x,) = _case("self")
    with torch.no_grad():
        plain, keys = ours(x), set(ours.state_dict())
        ours.set_processor(Gain())
        assert set(ours.state_dict()) == keys | {"processor.gain"}
        assert torch.equal(ours(x, bias=1.0), 2 * x + 1)
        ours.set_processor(
            lambda attn, hidden_states, encoder_hidden_states, attention_mask, bias=0.0: hidden_states - bias
        )
        assert torch.equal(ours(x, bias=1.0, unknown=3), x - 1)
        ours.set_processor(ours.default_processor())
        assert set(ours.state_dict()) == keys
        assert torch.equal(ours(x), plain)
