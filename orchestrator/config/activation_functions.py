"""What planning needs to know of each activation function; `worker.sae.activation_functions` computes them."""

from typing import Literal, NamedTuple

Activation = Literal["topk", "multi_topk", "batchtopk", "relu", "jumprelu"]


class ActivationFacts(NamedTuple):
    """How a training step of one activation function is computed."""

    selects_per_token: bool
    """Each token keeps its own k latents, listed by index: decode and gradients are sparse and written by hand, a step
    can be compiled, and latents can be divided over several devices."""
    is_penalised: bool = False
    """A penalty sets L0, not k."""
    reconstructions: tuple[tuple[int, float], ...] = ((1, 1.0),)
    """(c, weight): training decodes the c · k largest latents and adds weight · L(c · k) to the loss. Rising c."""


ACTIVATIONS: dict[Activation, ActivationFacts] = {
    "topk": ActivationFacts(selects_per_token=True),
    # L(k) + L(4k) / 8. Source: Gao et al. 2024, section 5.4, multi-TopK.
    "multi_topk": ActivationFacts(selects_per_token=True, reconstructions=((1, 1.0), (4, 1 / 8))),
    "batchtopk": ActivationFacts(selects_per_token=False),
    "relu": ActivationFacts(selects_per_token=False, is_penalised=True),
    "jumprelu": ActivationFacts(selects_per_token=False, is_penalised=True),
}
"""Every activation function a config may name. To add one: its name and facts here, its formula in
`worker/sae/activation_functions.py`."""


def reconstruction_sizes(activation: Activation, *, k: int, n_latents: int) -> tuple[tuple[int, float], ...]:
    """Return (latents decoded per token, weight in the loss) of each reconstruction, never more than n_latents."""
    return tuple((min(c * k, n_latents), weight) for c, weight in ACTIVATIONS[activation].reconstructions)


def check_encode_dtype(activation: Activation, dtype: str) -> None:
    """Refuse a rough product for what is not computed again.

    Raises:
        ValueError: float8_e4m3 with an activation that does not list the latents of each token.
    """
    if dtype == "float8_e4m3" and not ACTIVATIONS[activation].selects_per_token:
        others = " and ".join(name for name, facts in ACTIVATIONS.items() if facts.selects_per_token)
        raise ValueError(
            f"training.encode_dtype = {dtype} chooses what is computed again exactly, as {others} do: for "
            f"{activation} take bfloat16 or float32"
        )
