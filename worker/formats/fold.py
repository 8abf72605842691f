"""The same SAE in the conventions of another format: numbers moved from the input into weights and biases."""

from dataclasses import replace

from torch import Tensor

from orchestrator.errors import ConfigError
from worker.sae.inference import InferenceSae, Scales


def without_input_scale(sae: InferenceSae) -> InferenceSae:
    """Return it with the fixed numbers of its input and output in the weights: `normalize: none`."""
    if sae.facts.normalize != "fixed":
        return sae
    given, back = sae.scales.input, sae.scales.output
    if sae.facts.subtracts_bias and abs(given * back - 1.0) > 1e-9:
        sae = bias_subtracted(sae, False)
    return sae.changed(
        {"W_enc": sae.W_enc * given, "W_dec": sae.W_dec * back, "b_dec": sae.b_dec * back},
        facts=replace(sae.facts, normalize="none"),
        scales=Scales(),
    )


def unit_as_layer_norm(sae: InferenceSae) -> InferenceSae:
    """Return it as an SAE of vectors of standard deviation 1, with the same latents.

    (x − mean) / ‖x − mean‖ = layer_norm(x) / √(d_model − 1), but for the 1e-5 that layer_norm adds to std.
    """
    if sae.facts.normalize != "unit":
        return sae
    length = (sae.facts.d_model - 1) ** 0.5
    return sae.changed(
        {"W_enc": sae.W_enc / length, "W_dec": sae.W_dec * length, "b_dec": sae.b_dec * length},
        facts=replace(sae.facts, normalize="layer_norm"),
        scales=Scales(undoes_eps=False),
    )


def bias_subtracted(sae: InferenceSae, subtracts: bool) -> InferenceSae:
    """Return it with or without b_dec taken from the input; the encoder's biases make up for it.

    Raises:
        ConfigError: b_dec is of another width than the input.
    """
    if sae.facts.subtracts_bias == subtracts:
        return sae
    if len(sae.b_dec) != sae.facts.d_model:
        raise ConfigError("a bias of another width than the input cannot be subtracted from it")
    product = (sae.b_dec.double() @ sae.W_enc.double()) * (1 if subtracts else -1)
    changes: dict[str, Tensor] = {"b_enc": (sae.b_enc.double() + product).to(sae.dtype)}
    if sae.b_mag is not None and sae.r_mag is not None:
        changes["b_mag"] = (sae.b_mag.double() + sae.r_mag.double().exp() * product).to(sae.dtype)
    return sae.changed(changes, facts=replace(sae.facts, subtracts_bias=subtracts))


_SHIFT = 1e-3
"""Of each entry of a standardised vector, in standard deviations: what `without_latent_bias` may add."""


def without_latent_bias(sae: InferenceSae) -> InferenceSae:
    """Return an SAE of standardised vectors, which subtracts b_dec, with its b_enc in the encoder's weights.

    A standardised vector has the mean 0: along u = (1, ..., 1) / √d_model it is 0, and x̄ − b_dec is a constant there.
    With W_enc + u aᵀ in the place of W_enc, a = −b_enc / (u·b_dec), each latent gets its bias back. Where u·b_dec is
    near 0, as it is after training, b_dec is first moved along u, by 1e-3 in each entry: the latents are the same, and
    reconstructions are off by a thousandth of the vector's standard deviation in each entry.
    """
    width = sae.facts.d_model
    W_enc, b_dec = sae.W_enc.double(), sae.b_dec.double()
    along = b_dec.new_full((width,), width**-0.5)
    component = float(b_dec @ along)
    moved = 0.0 if abs(component) >= _SHIFT * width**0.5 else _SHIFT * width**0.5 - component
    inside = -(sae.b_enc.double() + moved * (along @ W_enc)) / (component + moved)
    changes: dict[str, Tensor] = {
        "W_enc": (W_enc + along[:, None] * inside).to(sae.dtype),
        "b_dec": (b_dec + moved * along).to(sae.dtype),
        "b_enc": sae.b_enc.new_zeros(len(sae.b_enc)),
    }
    return sae.changed(changes, facts=sae.facts)


def refuse_rank(sae: InferenceSae, title: str) -> None:
    """Refuse an SAE whose latents were scaled after their order was learned.

    Raises:
        ConfigError: it is one of `with_unit_rows` with topk.
    """
    if sae.rank is not None:
        raise ConfigError(
            f"{title} has no place for the order of latents that with_unit_rows keeps: export the SAE itself"
        )
