"""Reads torch's pickles with a machine that cannot call anything.

A pickle is a program for a stack machine. `Machine` runs the opcodes that torch.save writes. It knows three callables
and ten storage types by name. Every other global becomes an Inert, which is never imported and never called; its
arguments are dropped. Nothing here recurses into, hashes or prints nested objects of the file. Opcodes, stack and
counts are bounded, and therefore time and memory are too (a tensor takes about 30 opcodes).
"""

import struct
from pickletools import code2op
from typing import Any

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.formats.mapped import MAX_TENSORS, is_count
from sdjax.formats.torch_objects import (
    GLOBALS,
    STORAGES,
    Foreign,
    Inert,
    Known,
    Ordered,
    Scalar,
    Set,
    Storage,
    Tensor,
    shown,
)

MAX_PICKLE = 64 << 20  # bytes
MAX_OPCODES = 1_000_000  # about a second, for 30,000 tensors; a training checkpoint has 5,000
MAX_STACK, MAX_MARKS = 100_000, 1_000
MAX_TEXT = 65_536  # bytes of a text that is kept; decoded, a text of 64 MiB may take four times as much memory

#: opcode -> (number of bytes of its argument, argument to value)
FIXED = {
    b"N": (0, lambda b: None),
    b"\x88": (0, lambda b: True),
    b"\x89": (0, lambda b: False),
    b"}": (0, lambda b: {}),
    b"]": (0, lambda b: []),
    b")": (0, lambda b: ()),
    b"\x8f": (0, lambda b: Set("set")),
    b"K": (1, lambda b: b[0]),
    b"M": (2, lambda b: int.from_bytes(b, "little")),
    b"J": (4, lambda b: int.from_bytes(b, "little", signed=True)),
    b"G": (8, lambda b: struct.unpack(">d", b)[0]),
}
BYTES = lambda b: b
TEXT = lambda b: b.decode() if len(b) <= MAX_TEXT else Inert("long text")
#: opcode -> (number of bytes that hold its argument's length, argument to value)
COUNTED = {
    b"X": (4, TEXT),
    b"\x8c": (1, TEXT),
    b"\x8d": (8, TEXT),
    b"U": (1, TEXT),
    b"T": (4, TEXT),
    b"B": (4, BYTES),
    b"C": (1, BYTES),
    b"\x8e": (8, BYTES),
    b"\x96": (8, bytearray),
    b"\x8a": (1, lambda b: int.from_bytes(b, "little", signed=True)),
}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
#: torch's dict of parameters, which the first textual inversions' files hold
PARAMETERS = "torch.nn.modules.container.ParameterDict"
MEMO = {b"q": (True, 1), b"r": (True, 4), b"h": (False, 1), b"j": (False, 4)}  # opcode -> (write?, bytes of the index)


def is_key(value: Any) -> bool:
    """May `value` be a dict's key or a set's item? A tuple must be short and flat, since checking others takes long."""
    changes = (dict, Ordered, list, bytearray, Set)
    return type(value) not in changes and (
        type(value) is not tuple or (len(value) <= 16 and not any(type(item) in (*changes, tuple) for item in value))
    )


class Machine:
    """A stack machine for the pickles in `data`. `run` returns the object of the next pickle.

    After `run`, `pos` is behind that pickle, and `storages` has the storages that it named. It raises SdjaxError
    without the file's name, or what a broken program makes Python raise (mapped.BROKEN).
    """

    def __init__(self, data: bytes, legacy: bool = False):
        self.data, self.pos, self.legacy = data, 0, legacy
        self.storages: dict[str, Storage] = {}
        self.tensors = self.opcodes = 0

    def take(self, n: int) -> bytes:
        start, self.pos = self.pos, self.pos + n
        if self.pos > len(self.data):
            raise SdjaxError(f"its pickle is cut off, or has more than {MAX_PICKLE >> 20} MiB")
        return self.data[start : self.pos]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.pos, self.pos + 256)
        if end < 0:
            raise SdjaxError("its pickle has an endless name")
        return self.take(end + 1 - self.pos)[:-1].decode()

    def run(self) -> Any:
        """Runs the next pickle and returns its object. SdjaxError: it is broken, too large, or no pickle of torch's."""
        self.stack, self.marks, self.memo = [], [], {}
        while self.opcodes < MAX_OPCODES:
            self.opcodes += 1
            op = self.data[self.pos : self.pos + 1]
            self.pos += 1
            if op == b".":
                (value,) = self.stack
                if self.marks:
                    raise SdjaxError("its pickle ends inside a list")
                return value
            if op in FIXED:
                width, decode = FIXED[op]
                self.stack.append(decode(self.take(width) if width else b""))
            elif op in COUNTED:
                width, decode = COUNTED[op]
                self.stack.append(decode(self.take(self.number(width))))
            elif op in MEMO:
                write, width = MEMO[op]
                index = self.number(width)
                if write:
                    self.memo[index] = self.stack[-1]
                else:
                    self.stack.append(self.memo[index])
            elif op in TUPLES:
                self.stack.append(tuple(self.pop(TUPLES[op])))
            else:
                self.step(op)
            if len(self.stack) > MAX_STACK or len(self.marks) > MAX_MARKS:
                raise SdjaxError("its pickle nests or stacks too much")
        raise SdjaxError(f"its pickle has more than {MAX_OPCODES} opcodes")

    def pop(self, n: int) -> list:
        if len(self.stack) < n:
            raise SdjaxError("its pickle takes from an empty stack")
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def step(self, op: bytes) -> None:
        stack = self.stack
        match op:
            case b"\x80":  # PROTO
                if self.number(1) > 5:
                    raise SdjaxError("its pickle protocol is above 5")
            case b"\x95":  # FRAME
                if self.number(8) > len(self.data) - self.pos:
                    raise SdjaxError("its pickle is cut off within a frame")
            case b"\x94":  # MEMOIZE
                self.memo[len(self.memo)] = stack[-1]
            case b"(":
                self.marks.append(stack)
                self.stack = []
            case b"0":
                self.pop(1)
            case b"1":
                self.pop_mark()
            case b"t":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case b"a" | b"e":  # APPEND(S)
                self.extend(self.pop(1) if op == b"a" else self.pop_mark(), list)
            case b"\x90":  # ADDITEMS
                self.extend(self.pop_mark(), Set)
            case b"\x91":  # FROZENSET
                items = self.pop_mark()
                self.stack.append(Set("frozenset"))
                self.extend(items, Set)
                self.stack[-1] = Inert("frozenset")
            case b"s" | b"u":  # SETITEM(S)
                self.set_items(self.pop(2) if op == b"s" else self.pop_mark())
            case b"c" | b"\x93":  # (STACK_)GLOBAL
                module, name = (self.line(), self.line()) if op == b"c" else self.pop(2)
                if type(module) is not str or type(name) is not str or not module or not name:
                    raise SdjaxError("its pickle has a global without a name")
                stack.append(GLOBALS.get((module, name), Foreign(f"{module}.{name}")))
            case b"R" | b"\x81":  # REDUCE, NEWOBJ
                function, args = self.pop(2)
                stack.append(self.call(function, args, op == b"R"))
            case b"\x92":  # NEWOBJ_EX
                function, args, _ = self.pop(3)
                stack.append(self.call(function, args, False))
            case b"b":  # BUILD: an object's attributes, like a state dict's _metadata
                target, state = self.pop(2)
                if type(target) is not Inert and not (type(target) is Ordered and isinstance(state, dict)):
                    raise SdjaxError(f"its pickle sets attributes of {shown(target)}")
                if type(target) is Ordered and type(held := state.get("_parameters")) in (dict, Ordered):
                    target.update(held)  # a ParameterDict's
                stack.append(target)
            case b"Q":
                stack.append(self.storage(*self.pop(1)))
            case b"":
                self.take(0)  # refuses
            case _:
                known = code2op.get(op.decode("latin-1"))
                raise SdjaxError(f"its pickle has the opcode {known.name if known else op}, which torch does not write")

    def extend(self, items: list, kind: type) -> None:
        target = self.stack[-1]
        if type(target) not in (kind, Inert):
            raise SdjaxError(f"its pickle appends to {shown(target)}")
        if kind is Set and not all(map(is_key, items)):
            raise SdjaxError("its pickle has a set of lists, dicts or sets")
        if type(target) is list:
            target += items

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, Ordered, Inert) or len(items) % 2:
            raise SdjaxError(f"its pickle sets items of {shown(target)}")
        if type(target) is not Inert:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not is_key(key):
                    raise SdjaxError(f"its pickle has {shown(key)} as a key")
                key = key if type(key) is str else Inert(type(key).__name__)  # 1 and True would be the same
                if key in target:
                    raise SdjaxError(f"its pickle sets {shown(key)} twice")
                target[key] = value

    def call(self, function: Any, args: Any, reduce: bool) -> Any:
        if isinstance(function, Inert) and type(args) is tuple:
            return Ordered() if function.name == PARAMETERS else Inert(function.name)
        if type(function) is not Known or type(args) is not tuple:
            raise SdjaxError(f"its pickle calls {shown(function)}")
        if function is Known.DICT and not args:
            return Ordered()
        if function is Known.TENSOR and reduce and len(args) in (6, 7):
            return self.tensor(*args[:4])
        if function is Known.TYPED and reduce and len(args) in (7, 8):
            return self.typed(*args[:4], args[6])
        counts = {Known.PARAMETER: 3, Known.STATED: 4}
        if reduce and len(args) == counts.get(function) and type(args[0]) in (Tensor, Inert):
            return args[0]
        raise SdjaxError(f"its pickle calls {'.'.join(function.value)} with wrong arguments")

    def storage(self, saved: Any) -> Storage | Inert:
        """Returns the Storage of `saved`: ("storage", type, key, device, numel). In the legacy format a view follows,
        which must be None."""
        if (
            type(saved) is not tuple
            or len(saved) != 5 + self.legacy
            or type(saved[0]) is not str
            or (saved[0] != "storage")
            or (self.legacy and saved[5] is not None)
        ):
            raise SdjaxError("its pickle refers to something that is not a storage")
        _, dtype, key, device, numel = saved[:5]
        if type(dtype) is Foreign and not self.legacy:
            return Inert(dtype.name)
        untyped = dtype is Known.UNTYPED and not self.legacy
        dtype = np.dtype(np.uint8) if untyped else dtype
        if not isinstance(dtype, np.dtype):
            raise SdjaxError(f"its pickle has a storage of {shown(dtype)}, should be one of {', '.join(STORAGES)}")
        if type(key) is not str or type(device) is not str or not is_count(numel):
            raise SdjaxError("its pickle has a storage without a key, a device or a possible size")
        storage = Storage(key, dtype, numel, untyped)
        if self.storages.setdefault(key, storage) != storage:
            raise SdjaxError(f"storage {shown(key)} has two sizes or types")
        return storage

    def typed(self, storage: Any, offset: Any, shape: Any, strides: Any, scalar: Any) -> Tensor | Inert:
        """Returns a tensor of an untyped storage; an Inert for a type that is not known."""
        if type(storage) is Storage and storage.untyped and type(scalar) is Scalar:
            storage = Storage(storage.key, scalar.dtype, storage.numel // scalar.dtype.itemsize)
            return self.tensor(storage, offset, shape, strides)
        if type(storage) in (Storage, Inert) and isinstance(scalar, (Inert, Scalar)):
            return Inert("torch._utils._rebuild_tensor_v3")
        raise SdjaxError("its pickle calls torch._utils._rebuild_tensor_v3 with wrong arguments")

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor | Inert:
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise SdjaxError(f"it has more than {MAX_TENSORS} tensors")
        if type(storage) is Inert:
            return storage
        if (
            type(storage) is not Storage
            or storage.untyped
            or type(shape) is not tuple
            or type(strides) is not tuple
            or (len(shape) != len(strides))
            or len(shape) > 32
            or not all(map(is_count, (offset, *shape, *strides)))
        ):
            raise SdjaxError("a tensor has no storage, or a shape, strides or an offset that no tensor has")
        last = offset if all(shape) else offset - 1
        for stride, n in sorted(zip(strides, shape, strict=True)) if all(shape) else ():
            if n > 1 and stride <= last - offset:  # the smaller strides reach this far already
                raise SdjaxError(f"a tensor {list(shape)} with strides {list(strides)} repeats its elements")
            last += (n - 1) * stride
        if last >= storage.numel:
            raise SdjaxError(
                f"a tensor {list(shape)} with strides {list(strides)} at {offset} goes beyond its storage "
                f"of {storage.numel} elements"
            )
        return Tensor(storage, offset, shape, strides)
