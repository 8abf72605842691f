"""The kernels compiled for an H200 by Triton's own compiler and ptxas, which need no device.

What only the machine code shows: 16-byte loads, the tensor cores' instructions, and no more memory than there is.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton here: pip install triton (Linux)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

FLOAT, LONG, INT, BF16 = "*fp32", "*i64", "*i32", "*bf16"
SHARED_BYTES = 227 * 1024
"""What one program may have on Hopper."""
TILE = {"BLOCK_M": 128, "BLOCK": 64, "EVEN": True}
ROWS = [FLOAT] * 2 + [LONG] * 4 + [FLOAT] * 9
ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 6.25e-10, "SPHERE": True}


def _ptx(kernel: Any, pointers: list[str], constants: dict[str, Any], folder: Path, **options: int) -> str:
    """Compile for compute capability 9.0 with every argument divisible by 16; the rest of the arguments are int32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    plain = [name for name in names if name not in constants]
    types = [*pointers, *["i32"] * (len(plain) - len(pointers))]
    signature = dict.fromkeys(names, "constexpr") | dict(zip(plain, types, strict=True))
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in plain}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True, **options})
    assert done.metadata.shared <= SHARED_BYTES
    assert done.asm["cubin"]
    return str(done.asm["ptx"])


def _wide_loads(ptx: str) -> int:
    return len(re.findall(r"ld\.global\S*\.v4", ptx))


def test_rows_are_read_sixteen_bytes_at_a_time(tmp_path: Path) -> None:
    from worker.sae.compiled.kernels import adam, bags, segments

    decode = {"BLOCK_K": 4, "BLOCK_D": 512, "HAS_BIAS": True, "HAS_X": True}
    ptx = _ptx(bags.decode_kernel, [FLOAT, LONG, *[FLOAT] * 5], decode, tmp_path, num_warps=4)
    assert _wide_loads(ptx) >= 4
    sampled = {"BLOCK_K": 16, "BLOCK_D": 128}
    ptx = _ptx(bags.sampled_kernel, [FLOAT, LONG, FLOAT, FLOAT], sampled, tmp_path, num_warps=4)
    assert _wide_loads(ptx) >= 4
    rows = {"FUSED": True, "ADD": True, "BLOCK_T": 4, "BLOCK_D": 1024}
    assert _wide_loads(_ptx(segments.rows_kernel, ROWS, rows, tmp_path, num_warps=4)) >= 8
    parts = [LONG] * 2 + [FLOAT] * 6
    assert _wide_loads(_ptx(segments.parts_kernel, parts, {"BLOCK_D": 512}, tmp_path, num_warps=4)) >= 2
    size = {"ROWS": 2, "COLUMNS": 1024}
    assert _wide_loads(_ptx(adam.adam_kernel, [FLOAT] * 7, ADAM | size, tmp_path, num_warps=4)) >= 5
    _ptx(adam.squares_kernel, [FLOAT] * 3, {"SPHERE": True, **size}, tmp_path, num_warps=4)


@pytest.mark.parametrize("wide", [True, False])
def test_the_encoder_multiplies_on_the_tensor_cores(tmp_path: Path, wide: bool) -> None:
    from worker.sae.compiled.kernels.blockmax import encode_kernel

    tile = TILE | {"BLOCK_N": 256 if wide else 128, "BLOCK_K": 64, "PRECISION": "tf32"}
    pointers = [BF16, BF16, FLOAT, BF16, INT]
    ptx = _ptx(encode_kernel, pointers, tile, tmp_path, num_warps=8 if wide else 4, num_stages=3)
    assert "wgmma.mma_async" in ptx
    # Loads run ahead of the multiplication.
    assert "cp.async" in ptx


def test_float32_is_multiplied_exactly(tmp_path: Path) -> None:
    from worker.sae.compiled.kernels.blockmax import encode_kernel

    tile = TILE | {"BLOCK_N": 128, "BLOCK_K": 32, "PRECISION": "ieee"}
    ptx = _ptx(encode_kernel, [FLOAT] * 4 + [INT], tile, tmp_path, num_warps=8, num_stages=3)
    assert "mma" not in ptx


@pytest.mark.parametrize("of_blocks", [True, False])
def test_selection_and_counters_compile(tmp_path: Path, of_blocks: bool) -> None:
    from worker.sae.compiled.kernels import blockmax, counters

    select = {"BLOCK": 64, "SIZE": 2048, "OF_BLOCKS": of_blocks}
    _ptx(blockmax.select_kernel, [INT, BF16, INT, INT if of_blocks else LONG, BF16], select, tmp_path, num_warps=4)
    _ptx(counters.last_kernel, [FLOAT, LONG, INT], {"SIZE": 1024}, tmp_path)
    _ptx(counters.since_fired_kernel, [INT, LONG, LONG], {"SIZE": 1024}, tmp_path)
