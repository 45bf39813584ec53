"""What a computation costs: counted from its trace, or reported by XLA for a compiled program, or measured here.

The program may be compiled for another machine (tpu.py):

    flops(lambda x: x @ x, jax.ShapeDtypeStruct((64, 64), "float32"))         # 524288
    device = topology_devices(CHIPS["v5e"].topology)[0]                       # no TPU needed, only libtpu
    costs = Costs(compile_for(device, function, *shapes))
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

#: Dense bfloat16 FLOP/s (float16 on V100 and T4) of a device, from the makers' data sheets, by its name in
#: `device_kind`.
PEAK = {
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # as JAX calls v5p
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,  # v2 and v3: a device is one of a chip's two cores
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

MAKERS = r"(?:NVIDIA |Tesla |GeForce )*"  # may stand before a name of PEAK

FORMS = r"(?:[ -](?:SXM\d*|PCIe|\d+GB|HBM\d+e?))*"  # may stand behind it: the form and the memory


def peak_flops(kind: str) -> float | None:
    """Returns the peak of one device of this `device_kind`; None for a device that is not in the table.

    A maker's name, a form factor and the memory's size may stand around a name of PEAK and nothing else: an L40 is no
    L4, an RTX A1000 no A100, a laptop's or a part of a GPU (MIG) not the whole one.
    """
    fits = lambda name: re.fullmatch(f"{MAKERS}{re.escape(name)}{FORMS}", kind, re.IGNORECASE)
    return next((flops for name, flops in PEAK.items() if fits(name)), None)


class Costs:
    """What the compiler reports about a step, for one device: `flops`, `bytes` accessed, and `memory`."""

    def __init__(self, compiled: Any, parts: int = 1):
        """compiled: a `jax.stages.Compiled`. parts: how often its inner loop runs (--accumulate)."""
        found = compiled.cost_analysis()
        found = dict(found[0] if isinstance(found, list) else found or {})
        self.flops: float = found.get("flops", 0.0) * parts  # XLA counts a loop's body once
        self.bytes: float = found.get("bytes accessed", 0.0) * parts
        self.memory = memory(compiled)


def memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes that a program takes on one device: "arguments", "outputs", "temporary" and "total".

    Outputs that reuse the memory of arguments count once in the total. Empty if the compiler does not tell.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    found = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
    }
    return found | {"total": sum(found.values()) - stats.alias_size_in_bytes}


OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(.*)")

ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")

NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}


def main_memory_traffic(text: str) -> int:
    """Returns the bytes that a program moves to and from the device's main memory.

    text: the program's text, `jax.stages.Compiled.as_text`.

    The operands and results of every operation count, except those in a TPU's on-chip memory (S(1) in their layout).
    Copies between the two memories count once. XLA's own "bytes accessed" counts both memories, and counts copies
    several times. A loop's body counts once.
    """
    kinds, total = {}, 0
    stored = lambda kind: sum(array_sizes(kind, on_chip=False))
    for name, kind, operation, operands, rest in operations(text, fused=False):
        kinds[name] = kind
        if operation in NAMES or operation.endswith("-start") or "ConcatBitcast" in rest:
            continue
        if operation.endswith("-done"):
            total += sum(array_sizes(kind))
        else:
            total += stored(kind) + sum(
                stored(kinds.get(operand, "")) for operand in re.findall(r"%([\w.\-]+)", operands)
            )
    return total


def renamed(text: str) -> int:
    """Returns the bytes in XLA's "bytes accessed" that nothing reads or writes.

    They are slices that a TPU's compiler put side by side in on-chip memory and now treats as one array
    (ConcatBitcast).
    """
    return sum(
        2 * sum(array_sizes(kind)) for _, kind, _, _, rest in operations(text, fused=False) if "ConcatBitcast" in rest
    )


def cycles(text: str) -> int:
    """Returns the clock cycles that a TPU's compiler expects a program's operations to take one after the other.

    Pallas kernels count as nothing, because the compiler has no estimate for them. A loop's body counts once.
    """
    return sum(
        int(count)
        for *_, rest in operations(text, fused=False)
        for count in re.findall(r'"estimated_cycles":"(\d+)"', rest)
    )


def operations(text: str, fused: bool = True) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields (name, type, operation, operands, attributes) of every operation in a program's text. With `fused` False
    it leaves out those inside fusions."""
    within, listed = set() if fused else set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text)), fused
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            listed = start[1] not in within
        elif listed and (found := OPERATION.match(line)):
            yield found.groups()


def array_sizes(kind: str, on_chip: bool = True) -> list[int]:
    """Returns the bytes of each array in an HLO type. With `on_chip` False it leaves out those in a TPU's on-chip
    memory."""
    return [
        math.prod(int(side) for side in sides.split(",") if side) * int(bits or 8) // 8
        for bits, sides, layout in ARRAY.findall(kind)
        if on_chip or "S(1)" not in layout
    ]


# ---- counted


def flops(function: Callable, *args: Any) -> int:
    """Returns the multiplications and additions in the matrix products and convolutions of function(*args).

    The arguments are arrays or their shapes. The body of a loop counts as often as it runs (of a while loop, once). Of
    several branches the most expensive one counts.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            length = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * length
        elif name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        elif name != "pallas_call":  # its body runs once a tile; another branch of by_platform has the same products
            inner = [getattr(value, "jaxpr", value) for value in params.values()]
            times = params["length"] if name == "scan" else 1
            total += times * sum(_count(value) for value in inner if hasattr(value, "eqns"))
    return total


# ---- measured


def matmul_ceiling(dtype: str) -> float:
    """Measures the FLOP/s of large square matrix products on this machine, and returns the best of several runs.

    The matrices are noise, because a GPU is faster on matrices of ones. A run is several products in a row (20 on an
    accelerator), because launching a single one takes time too.
    """
    side, count = (2048, 2) if jax.default_backend() == "cpu" else (8192, 20)
    x, product, seconds = jax.random.normal(jax.random.key(0), (side, side), dtype), jax.jit(lambda x: x @ x), []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready([product(x) for _ in range(count)])
        seconds.append(time.perf_counter() - begin)
    return 2 * count * side**3 / min(seconds[1:])
