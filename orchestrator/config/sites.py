"""The hook sites of a transformer block: what is known of each without a model.

How a site is found in a model is in `worker.subject.hook_sites`; a new site is a row in each of the two.
"""

from typing import Literal, NamedTuple

Site = Literal["resid_post", "resid_mid", "attn_delta", "mlp_delta", "mlp_post"]


class SiteFacts(NamedTuple):
    """What is known of a site without a model."""

    meaning: str
    has_model_width: bool
    """Whether its activations are as wide as the residual stream."""


SITES: dict[Site, SiteFacts] = {
    "resid_post": SiteFacts("the residual stream after the block", True),
    "resid_mid": SiteFacts("the residual stream between attention and MLP", True),
    "attn_delta": SiteFacts("what attention adds to the residual stream", True),
    "mlp_delta": SiteFacts("what the MLP adds to the residual stream", True),
    "mlp_post": SiteFacts("the hidden activations of the MLP, which its last linear map reads", False),
}


def default_layer(n_layers: int) -> int:
    """Return the block after which three quarters of the depth are done, never the last one.

    Source: paper 2.1 (GPT-2 small: block 8 of 12).
    """
    return max(0, min(-(-3 * n_layers // 4), n_layers - 1) - 1)
