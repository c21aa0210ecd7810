"""The Triton kernel without a GPU: Triton's interpreter runs it on a CPU, and its compiler makes
machine code for two generations of GPUs. On a GPU: tests/gpu.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")

interprets = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7),
    reason="needs Triton 3.7: the interpreter of earlier ones fails on numpy 2.4",
)
ROOT = Path(__file__).parents[3]


def interpreted(*arguments):
    """What tests/gpu/kernel_cases.py reports, from a process whose kernels are interpreted."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tests/gpu/kernel_cases.py", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@interprets
def test_the_interpreted_kernel_says_what_the_reference_says():
    report = interpreted()
    assert len(report) > 25
    assert not {name: faults for name, faults in report.items() if faults}


@interprets
@pytest.mark.slow
def test_the_interpreted_kernel_says_what_the_reference_says_of_random_routings():
    report = interpreted("--random", "60")
    assert not {name: faults for name, faults in report.items() if faults}


POINTERS = {
    "domains": "*i64", "keep": "*i1", "flags": "*i64", "table": "*i64", "slow": "*i64",
}  # fmt: skip
NUMBERS = (
    "tokens", "logits_stride", "ids_stride", "gates_stride", "tokens_a_domain", "tokens_a_keep",
    "layers", "place", "num_domains",
)  # fmt: skip


def compiled(experts, k, logits, ids, arch, scores=0, labelled=True, masked=True):
    """The kernel as machine code for GPUs of compute capability `arch`, as a launch would have it
    for contiguous arguments.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from workbench.capture.route_stats_triton import blocking, kernel

    blocks = dict(blocking(experts))
    warps = blocks.pop("num_warps")
    fixed = dict(
        experts=experts, K=k, scores=scores, labelled=labelled, masked=masked, **blocks
    )  # fmt: skip
    pointers = {"logits": f"*{logits}", "ids": f"*{ids}", "gates": f"*{logits}", **POINTERS}
    types = pointers | dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(fixed, "constexpr")
    aligned = [*pointers, "logits_stride"] if experts % 16 == 0 else [*pointers]
    source = ASTSource(
        kernel,
        {name: types[name] for name in kernel.arg_names},
        fixed,
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
@pytest.mark.parametrize("arch", [80, 90])
def test_the_kernel_becomes_machine_code(arch, fresh_cache):
    code = compiled(16, 4, "bf16", "i64", arch)
    assert f".target sm_{arch}" in code.asm["ptx"]
    assert code.asm["cubin"].startswith(b"\x7fELF")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
@pytest.mark.parametrize("experts", [8, 16, 60, 64, 128, 256])
def test_the_kernel_becomes_machine_code_for_every_shape(experts, fresh_cache):
    for turn, k in enumerate((1, 2, 4, 8)):
        code = compiled(
            experts, k, ("bf16", "fp16", "fp32")[turn % 3], ("i32", "i64")[turn // 2],
            arch=(80, 90)[turn % 2], scores=turn % 3, labelled=turn < 2, masked=turn % 2 == 0,
        )  # fmt: skip
        assert code.asm["cubin"].startswith(b"\x7fELF")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
def test_tables_are_added_to_in_64_bits_alone(fresh_cache):
    ptx = compiled(16, 4, "bf16", "i64", 90).asm["ptx"]
    assert set(re.findall(r"\.global[\w.]*\.add\.(\w+)", ptx)) == {"u64", "f64"}
