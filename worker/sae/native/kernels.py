"""The compiled kernels, as functions of tensors, and whether they are in use.

Each has a plain reference in torch beside the place that calls it. They take contiguous float32 rows of a CPU.
"""

import ctypes
import math
from collections.abc import Sequence
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.sae.native.library import NoLibrary, compiled

_K = 64
"""Beyond so many the kernel has no bound and inserts values one by one: torch's selection is faster."""


class _Part(ctypes.Structure):
    _fields_ = (("gradient", c_void_p), ("k", c_int64))


class AdamStep(ctypes.Structure):
    """The numbers of one step of Adam and of the average of the weights: keep is β, new is 1 − β of each moment."""

    _fields_ = tuple(
        (name, c_float) for name in ("step_size", "second_bias", "keep1", "keep2", "new1", "new2", "eps", "share")
    )


class Rows(NamedTuple):
    """One parameter, its gradient, and what the optimiser keeps of it."""

    weights: Float[Tensor, "*shape"]
    gradient: Float[Tensor, "*shape"]
    exp_avg: Float[Tensor, "*shape"]
    exp_avg_sq: Float[Tensor, "*shape"]
    average: Float[Tensor, "*shape"]


_SIGNATURES = {
    "top_k": (*(c_void_p,) * 2, *(c_int64,) * 3, *(c_void_p,) * 2, c_int),
    "keep_top_k": (c_void_p, *(c_int64,) * 4, c_int),
    "reconstruction_error": (*(c_void_p,) * 5, *(c_int64,) * 3, *(c_void_p,) * 2, c_int),
    "mark_fired": (*(c_void_p,) * 2, *(c_int64,) * 2, c_void_p),
    "by_latent": (c_void_p, *(c_int64,) * 2, *(c_void_p,) * 2),
    "gradients": (POINTER(_Part), c_int64, *(c_void_p,) * 6, *(c_int64,) * 4, *(c_void_p,) * 4, c_int),
    "log_sum_exp": (c_void_p, *(c_int64,) * 2, c_void_p, c_int),
    "softmax": (c_void_p, *(c_int64,) * 2, c_void_p, c_int),
    "around_median": (*(c_void_p,) * 3, *(c_int64,) * 2, c_void_p, c_int),
    "adam": (POINTER(AdamStep), *(c_void_p,) * 5, *(c_int64,) * 2, *(c_int,) * 2, c_void_p, c_int),
}


class Kernels:
    """The functions of a compiled library; `threads` share a function's rows, as many as torch has here."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declare what each function takes."""
        self.library = library
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, c_double if name == "adam" else None

    def top_k(
        self, rows: Float[Tensor, "n_tokens n_latents"], k: int, *, bias: Float[Tensor, " n_latents"] | None = None
    ) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
        """Return the k largest values of each row and their places: largest first, of equal ones the lower first.

        `bias` is added to every row as it is looked at; the rows stay as they are.
        """
        n_rows, n = rows.shape
        assert k <= n, "no row has more"
        values, indices = rows.new_empty(n_rows, k), rows.new_empty(n_rows, k, dtype=torch.int64)
        self.library.top_k(
            rows.data_ptr(), bias if bias is None else bias.data_ptr(), n_rows, n, k, values.data_ptr(),
            indices.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return values, indices

    def keep_top_k(self, rows: Float[Tensor, "n_tokens n_latents"], k: int) -> None:
        """Set to 0, in place, what is negative or not among the k largest of its row: what `top_k` returns."""
        self.library.keep_top_k(rows.data_ptr(), len(rows), rows.stride(0), rows.shape[1], k, torch.get_num_threads())

    def reconstruction_error(
        self,
        x: Float[Tensor, "n_tokens d_model"],
        acts: Float[Tensor, "n_tokens k"],
        indices: Int[Tensor, "n_tokens k"],
        W_dec: Float[Tensor, "n_latents d_model"],
        b_pre: Float[Tensor, " d_model"],
    ) -> tuple[Float[Tensor, "n_tokens d_model"], Float[Tensor, " n_tokens"]]:
        """Return x − x̂ and its squared norm of each token."""
        acts, indices, b_pre = acts.contiguous(), indices.contiguous(), b_pre.contiguous()
        error, squares = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float64)
        self.library.reconstruction_error(
            x.data_ptr(), acts.data_ptr(), indices.data_ptr(), W_dec.data_ptr(), b_pre.data_ptr(),
            *acts.shape, x.shape[1], error.data_ptr(), squares.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return error, squares

    def mark_fired(
        self,
        acts: Float[Tensor, "n_tokens k"],
        indices: Int[Tensor, "n_tokens k"],
        since: Int[Tensor, " n_latents"],
    ) -> None:
        """Write how many tokens before the last one each latent of a batch fired last."""
        acts, indices = acts.contiguous(), indices.contiguous()
        self.library.mark_fired(acts.data_ptr(), indices.data_ptr(), *acts.shape, since.data_ptr())

    def by_latent(
        self, indices: Int[Tensor, "n_tokens k"], n_latents: int
    ) -> tuple[Int[Tensor, " n_chosen"], Int[Tensor, " n_latents_and_1"]]:
        """Return the places of `indices` by latent, in order, and where those of each latent begin."""
        order, bounds = indices.new_empty(indices.numel()), indices.new_empty(n_latents + 1)
        self.library.by_latent(indices.data_ptr(), indices.numel(), n_latents, order.data_ptr(), bounds.data_ptr())
        return order, bounds

    def gradients(
        self,
        parts: Sequence[tuple[int, Float[Tensor, "n_tokens d_model"]]],
        code: tuple[Float[Tensor, "n_tokens width"], Int[Tensor, "n_tokens width"]],
        centred: Float[Tensor, "n_tokens d_model"],
        weights: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, "n_latents d_model"]],
        out: tuple[Tensor, Tensor, Tensor, Tensor | None],
    ) -> None:
        """Write the gradients of W_enc, b_enc, W_dec and b_pre, if that is asked for.

        Each part is (k, ∂/∂x̂) of one reconstruction; `weights` are (W_enc, W_dec).
        """
        (W_enc, W_dec), (acts, indices) = weights, (each.contiguous() for each in code)
        assert all(each is None or each.is_contiguous() for each in (*out, *weights, centred)), "rows follow each other"
        order, bounds = self.by_latent(indices, len(W_dec))
        given = (_Part * len(parts))(*(_Part(gradient.data_ptr(), k) for k, gradient in parts))
        sources = acts, centred, W_dec, W_enc, order, bounds
        pointers = [each.data_ptr() for each in sources], [each if each is None else each.data_ptr() for each in out]
        sizes = *acts.shape, *W_dec.shape
        self.library.gradients(given, len(parts), *pointers[0], *sizes, *pointers[1], torch.get_num_threads())

    def adam(self, step: AdamStep, rows: Rows, *, is_sphere: bool, is_projected: bool) -> float:
        """Update a parameter in place; return the squared norm of its gradient.

        `is_sphere`: the gradient's part along a row is taken out, unless it is already, and rows end at unit norm.
        """
        n_rows, width = (*rows.weights.shape,) if rows.weights.ndim == 2 else (1, len(rows.weights))
        squares = rows.weights.new_empty(n_rows, dtype=torch.float64)
        found: float = self.library.adam(
            byref(step), *(each.data_ptr() for each in rows), n_rows, width, is_sphere, is_projected,
            squares.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return found

    def log_sum_exp(self, rows: Float[Tensor, "n_rows n"]) -> Float[Tensor, " n_rows"]:
        """Return ln Σ e^x of each row."""
        found = rows.new_empty(len(rows))
        self.library.log_sum_exp(rows.data_ptr(), *rows.shape, found.data_ptr(), torch.get_num_threads())
        return found

    def softmax_(self, rows: Float[Tensor, "n_rows n"]) -> Float[Tensor, " n_rows"]:
        """Put each row's softmax in its place; return what `log_sum_exp` does of what was there."""
        found = rows.new_empty(len(rows))
        self.library.softmax(rows.data_ptr(), *rows.shape, found.data_ptr(), torch.get_num_threads())
        return found

    def around_median_(
        self, rows: Float[Tensor, "n_rows n"], others: Float[Tensor, "n_others n"], of: Int[Tensor, " n_rows"]
    ) -> Float[Tensor, "n_rows 3"]:
        """Subtract others[of] from the rows, in place; return each row's median m, Σ|x − m| and Σ(x − m)², in float64.

        Of two values in the middle the lower one is the median.
        """
        found = rows.new_empty(len(rows), 3, dtype=torch.float64)
        of = of.contiguous()
        self.library.around_median(
            rows.data_ptr(), others.data_ptr(), of.data_ptr(), *rows.shape, found.data_ptr(), torch.get_num_threads()
        )
        return found


_in_use: Kernels | None = None


def use(folder: Path | None) -> str | None:
    """Use the kernels in this process from now on, compiled into the folder; None: use them no more.

    Returns why they are not used where they cannot be.
    """
    global _in_use
    found = None if folder is None else _loaded(folder)
    _in_use = found if isinstance(found, Kernels) else None
    return found if isinstance(found, str) else None


@cache
def _loaded(folder: Path) -> Kernels | str:
    try:
        found = Kernels(compiled(folder))
    except (NoLibrary, AttributeError) as error:  # a library of something else has none of the functions
        return str(error)
    return found if _agrees(found) else "the compiled kernels do not agree with torch"


def kernels_for(*tensors: Tensor, k: int = 0) -> Kernels | None:
    """Return the kernels where they are in use and take these tensors."""
    if _in_use is None or k > _K or torch.compiler.is_compiling():
        return None
    for each in tensors:
        if each.dtype is not torch.float32 or each.is_cuda or not each.is_contiguous():
            return None
    return _in_use


def _agrees(found: Kernels) -> bool:
    """Say whether the kernels select and add as torch does, on a few rows."""
    rows = torch.linspace(-3, 3, 3 * 37).sin().view(3, 37).contiguous()
    values, indices = found.top_k(rows, 5)
    expected = rows.sort(dim=1, descending=True, stable=True)
    left, squares = found.reconstruction_error(rows, values, indices, rows.new_zeros(37, 37), rows[0].clone())
    return (
        torch.equal(values, expected.values[:, :5])
        and torch.equal(indices, expected.indices[:, :5])
        and torch.allclose(left, rows - rows[0])
        and math.isclose(float(squares.sum()), float((rows - rows[0]).square().sum()), rel_tol=1e-5)
    )
