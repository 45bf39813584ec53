"""Converts tensors of files to parameter trees and back, by the same table of names.

If something does not fit, one line counts all of it.
"""

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError, log
from sdjax.networks.rows import TensorRow
from sdjax.types import Params
from sdjax.weights.spellings import is_harmless, is_of_a_later_layer, refused

# operation -> (the file's value to ours, ours to the file's, our shape to the file's shape)
OPERATIONS = {
    "same": (lambda a: a, lambda a: a, lambda s: s),
    "dense": (lambda a: a.T, lambda a: a.T, lambda s: s[::-1]),
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1])),
    "conv1x1": (lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None], lambda s: (s[1], s[0], 1, 1)),
}


def share(i: int, n: int):
    """Returns the operation for one of n matrices, as q, k, v, which the file stacks along the first axis.
    `to_file_tensors` stacks them again."""
    return (lambda a: a[i * (len(a) // n) : (i + 1) * (len(a) // n)].T, lambda a: a.T, lambda s: (n * s[-1], *s[:-1]))


SPLIT, HALVES = ("split q", "split k", "split v"), ("half k", "half v")

OPERATIONS |= {name: share(i, len(names)) for names in (SPLIT, HALVES) for i, name in enumerate(names)}
OPERATIONS["conv1d"] = (lambda a: a[:, :, 0].T, lambda a: a.T[:, :, None], lambda s: (s[1], s[0], 1))


def of_heads(heads: int, i: int):
    """Returns the operation for one of q, k, v in LDM's attention blocks: the file has all of head 1, then of head 2.

    The order is heads, then q k v, then the head's width (`QKVAttentionLegacy` in CompVis `openaimodel.py`).
    """

    def ours(a: np.ndarray) -> np.ndarray:
        if a.ndim == 1:
            return a.reshape(heads, 3, -1)[:, i].reshape(-1)
        return a[..., 0].reshape(heads, 3, -1, a.shape[1])[:, i].reshape(-1, a.shape[1]).T

    return ours, lambda a: a.T, lambda s: (3 * s[-1], *s[:-1], *(1,) * (len(s) - 1))


def operation_of(name: str):
    """Returns (the file's value to ours, ours to the file's, our shape to the file's shape) of an operation by name."""
    if name.startswith("stacked "):
        _, heads, part = name.split()
        return of_heads(int(heads), "qkv".index(part))
    return OPERATIONS[name]


def stacked(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns q, k and v, or k and v, by their operations' names, as the file's one tensor."""
    for names in (SPLIT, HALVES):
        if set(parts) == set(names):
            return np.ascontiguousarray(np.concatenate([parts[part] for part in names]))
    heads = int(next(iter(parts)).split()[1])
    by_head = [parts[f"stacked {heads} {part}"] for part in "qkv"]
    by_head = [value.reshape(heads, -1, *value.shape[1:]) for value in by_head]
    whole = np.stack(by_head, 1).reshape(3 * len(parts[f"stacked {heads} q"]), *by_head[0].shape[2:])
    return np.ascontiguousarray(whole[..., None] if whole.ndim == 2 else whole)


def from_file_tensors(
    tensors: Mapping[str, np.ndarray],
    rows: Sequence[TensorRow],
    expected: Any,
    layout: str = "diffusers",
    source: str = "the file",
    text_layers: int = -1,
    own: tuple[str, ...] = ("",),
) -> Params:
    """Converts the tensors of a file to a parameter tree on the device.

    Values keep their dtype, except that float8 becomes float16, and float64 becomes float32. A matrix may also be
    stored as a convolution of 1 x 1, and the other way round.

    tensors: name in the file -> array.
    rows: the table of names.
    expected: the tree of shapes (`param_shapes`).
    layout: "diffusers" or "compvis", which names of the rows to use.
    source: what the error message calls the file.
    text_layers: the number of layers of the text tower, if it is in the file.
    own: how the names of the networks' own tensors begin. Others are left out, and one line of log counts them.
    SdjaxError: one line about all missing, unexpected, wrong-shape, non-float and non-finite tensors.
    """
    shapes, found, problems = flatten_dict(expected), {}, []  # problems: (kind, name, what is wrong)
    for row in rows:
        name, operation = file_name(row, layout)
        if name not in tensors:
            problems.append(("missing", name, ""))
            continue
        value = np.asarray(tensors[name])
        to_ours, _, file_shape = operation_of(operation)
        want = tuple(file_shape(shapes[row.path].shape))
        if value.shape != want and same_matrix(value.shape, want):
            value = value.reshape(want)
        if value.shape != want:
            problems.append(("of wrong shape", name, f" {list(value.shape)}, should be {list(want)}"))
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(("not floating point", name, f" {value.dtype}"))
        elif not np.isfinite(value).all():
            problems.append(("with NaN or infinite values", name, ""))
        elif value.dtype.itemsize == 1:  # float8: nothing computes in it, and float16 holds all its values
            found[row.path] = placed(to_ours(value.astype(np.float16)))
        else:
            found[row.path] = placed(to_ours(value))
        drop_pages(value)
    left_out = []
    for name in sorted(set(tensors) - {file_name(row, layout)[0] for row in rows}):
        if what := refused(name):
            raise SdjaxError(f"{source}: holds {name}, so its model needs {what}, which is not supported")
        if is_harmless(name, layout, text_layers):
            continue
        if name.startswith(own) and not is_of_a_later_layer(name, text_layers):
            problems.append(("unexpected", name, ""))
        else:
            left_out.append(name)
    if problems:
        raise SdjaxError(report(source, problems))
    if left_out:
        log.warning(
            "%s: %d tensors that no computation here needs are left out: %s", source, len(left_out), first_of(left_out)
        )
    return unflatten_dict(found)


def same_matrix(shape: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Are these shapes [C, D] and [C, D, 1, 1], a matrix and a convolution of 1 x 1?"""
    flat = lambda sides: sides[:2] if len(sides) == 4 and sides[2:] == (1, 1) else sides
    return {len(shape), len(want)} == {2, 4} and flat(shape) == flat(want)


SHOWN, LONGEST = 3, 400  # of the tensors of a kind, in a report; characters of a report


def report(source: str, problems: Sequence[tuple[str, str, str]]) -> str:
    """Returns one line about tensors that do not fit: a count and some names of each kind. The log has all at DEBUG.

    problems: (kind, name, what is wrong with it).
    """
    log.debug("%s: tensors that do not fit: %s", source, "; ".join(f"{kind} {n}{said}" for kind, n, said in problems))
    kinds: dict[str, list[str]] = {}
    for kind, name, said in problems:
        kinds.setdefault(kind, []).append(name + said)
    for shown in range(SHOWN, 0, -1):
        parts = [f"{len(lines)} {kind}: {first_of(lines, shown)}" for kind, lines in kinds.items()]
        line = f"{len(problems)} tensors do not fit the config: {'; '.join(parts)}"
        if len(line) <= LONGEST:
            break
    return f"{source}: {line}"


def first_of(names: Sequence[str], count: int = SHOWN) -> str:
    """Returns the first names of a list, each at most 120 characters long."""
    shown = [name if len(name) <= 120 else f"{name[:117]}..." for name in names[:count]]
    return ", ".join(shown) + (" ..." if len(names) > count else "")


def placed(value: np.ndarray) -> jax.Array:
    """Returns a copy on the device. `jnp.asarray` would compile a program for every shape."""
    return jax.device_put(value.copy() if value.flags.c_contiguous else value)  # else it may be a view of the file


def drop_pages(value: np.ndarray) -> None:
    """Drops the pages of a mapped file that `value` is a view of.

    Pages that were read count as this process' memory until they are dropped, so loading would take the file's size a
    second time. Reading them again costs little.
    """
    base = value
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and not value.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def to_file_tensors(params: Params, rows: Sequence[TensorRow], layout: str = "diffusers") -> dict[str, np.ndarray]:
    """Converts a parameter tree to contiguous numpy arrays by their names in files: the inverse of `from_file_tensors`.

    Values keep their dtype. SdjaxError: the parameters are not those of the rows.
    """
    flat = flatten_dict(params)
    paths = {row.path for row in rows}
    if paths != set(flat):
        lost = sorted("/".join(path) for path in set(flat) - paths)
        absent = sorted("/".join(path) for path in paths - set(flat))
        raise SdjaxError(f"params do not fit the config: missing {absent}, unexpected {lost}")
    tensors, stacks = {}, {}
    for row in rows:
        name, operation = file_name(row, layout)
        value = operation_of(operation)[1](np.asarray(flat[row.path]))
        if operation in (*SPLIT, *HALVES) or operation.startswith("stacked "):
            stacks.setdefault(name, {})[operation] = value
        else:
            tensors[name] = np.ascontiguousarray(value)
    return tensors | {name: stacked(parts) for name, parts in stacks.items()}


def cast_params(params: Params, dtype: np.dtype) -> Params:
    """Returns the parameters rounded to `dtype`, as numpy arrays. SdjaxError: names those that become infinite."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    with np.errstate(over="ignore"):
        cast = {path: leaf.astype(dtype) for path, leaf in flat.items()}
    lost = [
        "/".join(path) for path, leaf in cast.items() if not np.isfinite(leaf).all() and np.isfinite(flat[path]).all()
    ]
    if lost:
        raise SdjaxError(
            f"dtype {np.dtype(dtype).name} cannot hold values of {', '.join(lost[:5])}"
            + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        )
    return unflatten_dict(cast)


def file_name(row: TensorRow, layout: str) -> tuple[str, str]:
    """Returns (name, operation) of a row in the layout "diffusers" or "compvis"."""
    if layout == "diffusers":
        return row.diffusers, row.operation
    if row.compvis is None:
        raise SdjaxError(f"{'/'.join(row.path)}: the CompVis layout has no such tower")
    return row.compvis, row.compvis_operation
