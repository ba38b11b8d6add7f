"""Rules of the operations that move channels about: concatenations, parts, reshapes, orders of axes.

Names are those of functions, methods and modules; see :mod:`widthwise.network.rules` for what a rule is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from widthwise.network.calls import Call, Results, Rule
from widthwise.network.moves import Channels, chunked, padded, reshaped, sliced
from widthwise.network.ties import CONSTANT
from widthwise.network.tracing import shapes_of_node

__all__ = ["REARRANGING"]


def _cat(call: Call) -> Results | None:
    parts = call.node.args[0] if call.node.args else call.node.kwargs["tensors"]
    axis = call.node.kwargs.get(
        "dim", call.node.kwargs.get("axis", call.node.args[1] if len(call.node.args) > 1 else 0)
    )
    if not isinstance(parts, list | tuple) or not isinstance(axis, int):
        return None
    axis %= len(call.shape)
    known = [found for part in parts if (found := call.varying(part)) is not None]
    if any(found.axis != axis for found in known):
        return _along(call, parts, known, inserted=None)
    atoms = []
    for part in parts:
        found = call.varying(part)
        size = shapes_of_node(part)[0][axis]
        atoms.append(found.labels if found is not None else np.full(size, CONSTANT, dtype=np.int64))
    return [Channels(axis, np.concatenate(atoms))]


def _stack(call: Call) -> Results | None:
    parts, axis = call.arg(0, "tensors"), call.arg(1, "dim", 0)
    if not isinstance(parts, list | tuple) or not isinstance(axis, int):
        return None
    known = [found for part in parts if (found := call.varying(part)) is not None]
    return _along(call, parts, known, inserted=axis % len(call.shape))


def _along(call: Call, parts: Sequence[Any], known: Sequence[Channels], inserted: int | None) -> Results | None:
    """Tensors put together along another axis than their channels, which therefore must agree."""
    if not known:
        return [None]
    axis = known[0].axis
    if any(found.axis != axis for found in known):
        return None
    for part in parts:
        found = call.varying(part)
        other = found.labels if found is not None else np.full_like(known[0].labels, CONSTANT)
        call.ties.tie(known[0].labels, other, f"meets channels that can't change in {call.node.name!r}")
    return [Channels(axis if inserted is None or inserted > axis else axis + 1, known[0].labels)]


def _chunk(call: Call) -> Results | None:
    found, parts, axis = call.channels, call.arg(1, "chunks"), call.arg(2, "dim", 0)
    if call.name == "tensor_split":
        parts = call.arg(1, "indices_or_sections")
    if found is None or not isinstance(axis, int):
        return [None] * len(call.shapes) if found is None else None
    if axis % len(call.before) != found.axis:
        return [found] * len(call.shapes)
    results = chunked(call.ties, found, parts) if isinstance(parts, int) else []
    return list(results) if len(results) == len(call.shapes) else None


def _split(call: Call) -> Results | None:
    found, sizes, axis = call.channels, call.arg(1, "split_size_or_sections"), call.arg(2, "dim", 0)
    sizes = call.node.kwargs.get("split_size", sizes)
    if found is None or not isinstance(axis, int):
        return [None] * len(call.shapes) if found is None else None
    if axis % len(call.before) != found.axis:
        return [found] * len(call.shapes)
    parts = len(call.shapes)
    shares = sizes if isinstance(sizes, list | tuple) else [sizes] * parts
    if len(shares) == parts and all(call.is_share(share, parts) for share in shares):
        return list(chunked(call.ties, found, parts))
    call.ties.fix(found.labels, "is split at places written in the code")
    return None


def _unbind(call: Call) -> Results | None:
    found, axis = call.channels, call.arg(1, "dim", 0)
    if found is None or axis % len(call.before) == found.axis:
        return None if found is not None else [None] * len(call.shapes)
    gone = axis % len(call.before) < found.axis
    return [Channels(found.axis - gone, found.labels)] * len(call.shapes)


def _getitem(call: Call) -> Results | None:
    container, index = call.node.args
    assert isinstance(container, fx.Node)
    if container.name in call.tensors.several:
        parts = call.tensors.several[container.name]
        chosen = parts[index] if isinstance(index, int | slice) else None
        return chosen if isinstance(chosen, list) else [chosen]
    found = call.channels
    if found is None:
        return [None]
    given = list(index) if isinstance(index, tuple | list) else [index]
    if any(not isinstance(part, int | slice | type(None) | type(...)) for part in given):
        return None
    return _indexed(call, found, given)


def _indexed(call: Call, found: Channels, given: list[Any]) -> Results | None:
    """Basic indexing."""
    taking = sum(part is not None and part is not ... for part in given)
    if ... not in given:
        given = [*given, ...]
    place = given.index(...)
    given = given[:place] + [slice(None)] * (len(call.before) - taking) + given[place + 1 :]
    old = new = 0
    for part in given:
        if part is None:
            new += 1
            continue
        if old == found.axis:
            if not isinstance(part, slice):
                return None
            result = _slice(call, found, part)
            return None if result is None else [Channels(new, result.labels)]
        old, new = old + 1, new + isinstance(part, slice)
    return None


def _slice(call: Call, found: Channels, part: slice) -> Channels | None:
    if part == slice(None):
        return found
    size = len(found.labels)
    nodes = [bound for bound in (part.start, part.stop) if isinstance(bound, fx.Node)]
    if not nodes:
        return sliced(call.ties, found, part.start, part.stop, part.step)
    parts = next((parts for parts in range(2, size + 1) if call.is_share(nodes[0], parts)), 0)
    whole = len(nodes) == 1 and part.step in (None, 1) and parts and size % parts == 0
    if not whole or parts != 2 or (part.start is not None and part.stop is not None):
        return None
    halves = chunked(call.ties, found, 2)
    return halves[0] if part.start is None else halves[1]


def _narrow(call: Call) -> Results | None:
    found, axis, start, length = call.channels, call.arg(1, "dim"), call.arg(2, "start"), call.arg(3, "length")
    if found is None or axis % len(call.before) != found.axis:
        return [found]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    return [sliced(call.ties, found, start, start + length, None)]


def _pad(call: Call) -> Results | None:
    found, pads, mode = call.channels, call.arg(1, "pad"), call.arg(2, "mode", "constant")
    if found is None or not isinstance(pads, list | tuple):
        return [found] if found is None else None
    place = 2 * (len(call.before) - 1 - found.axis)
    before, after = (*pads[place : place + 2], 0, 0)[:2]
    if not isinstance(before, int) or not isinstance(after, int):
        return None
    return [padded(call.ties, found, before, after, constant_values=mode == "constant")]


def _reshape(call: Call) -> Results | None:
    found = call.channels
    if found is None:
        return [None]
    if call.before == call.shape:
        sizes: list[Any] = []
    elif call.name in ("flatten", "Flatten", "squeeze", "unsqueeze", "view_as", "reshape_as"):
        sizes = []
    elif call.name in ("unflatten", "Unflatten"):
        axis = call.arg(1, "dim") % len(call.before)
        given = call.arg(2, "sizes") if call.module is None else call.arg(2, "unflattened_size")
        sizes = [-1] * axis + list(given)
    else:
        sizes = call.varargs("shape")
    literal = [isinstance(size, int) and size != -1 for size in sizes]
    literal += [False] * (len(call.shape) - len(literal))
    if call.before == call.shape:
        return [found]
    result = reshaped(call.ties, found, call.before, call.shape, literal)
    return [result]


def _permute(call: Call) -> Results | None:
    found, rank = call.channels, len(call.before)
    if found is None:
        return [None]
    if call.name in ("t", "T", "transpose", "swapaxes", "swapdims"):
        a, b = (call.arg(1, "dim0", 0), call.arg(2, "dim1", 1)) if call.name not in ("t", "T") else (0, 1)
        order = list(range(rank))
        order[a % rank], order[b % rank] = b % rank, a % rank
    else:
        order = [axis % rank for axis in (call.module.dims if hasattr(call.module, "dims") else call.varargs("dims"))]  # type: ignore[union-attr]
    return [Channels(order.index(found.axis), found.labels)]


def _expand(call: Call) -> Results | None:
    found = call.channels
    if found is None:
        return [None]
    axis = found.axis + len(call.shape) - len(call.before)
    if call.name == "expand" and isinstance(call.varargs("size")[axis], int) and call.varargs("size")[axis] != -1:
        return None
    return [Channels(axis, found.labels)] if call.shape[axis] == len(found.labels) else None


def _repeat(call: Call) -> Results | None:
    found = call.channels
    if found is None:
        return [None]
    axis = found.axis + len(call.shape) - len(call.before)
    return [Channels(axis, np.tile(found.labels, call.shape[axis] // len(found.labels)))]


def _flip(call: Call) -> Results | None:
    found = call.channels
    axes = [axis % len(call.before) for axis in call.varargs("dims")]
    if found is None or found.axis not in axes:
        return [found]
    return [Channels(found.axis, found.labels[::-1].copy())]


def _pixel_shuffle(call: Call) -> Results | None:
    found, factor = call.channels, call.arg(1, "upscale_factor")
    if found is None or found.axis != 1:
        return None if found is not None else [None]
    blocks = found.labels.reshape(-1, factor**2)
    call.ties.tie(blocks, blocks[:, :1], "is tied to channels that can't change by a pixel shuffle")
    return [Channels(1, blocks[:, 0])]


def _pixel_unshuffle(call: Call) -> Results | None:
    found, factor = call.channels, call.arg(1, "downscale_factor")
    if found is None or found.axis != 1:
        return None if found is not None else [None]
    return [Channels(1, np.repeat(found.labels, factor**2))]


def _channel_shuffle(call: Call) -> Results | None:
    found, groups = call.channels, call.arg(1, "groups")
    if found is None or found.axis != 1 or len(found.labels) % groups:
        return None if found is not None else [None]
    return [Channels(1, np.repeat(chunked(call.ties, found, groups)[0].labels, groups))]


def _glu(call: Call) -> Results | None:
    found, axis = call.channels, call.arg(1, "dim", -1)
    if found is None or axis % len(call.before) != found.axis:
        return [found]
    return [chunked(call.ties, found, 2)[0]]


_RESHAPES = ("view", "reshape", "flatten", "Flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten")

REARRANGING: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("glu", "GLU"), _glu),
    **dict.fromkeys(("chunk", "tensor_split"), _chunk),
    "split": _split,
    "unbind": _unbind,
    "getitem": _getitem,
    "narrow": _narrow,
    **dict.fromkeys(("pad", "_pad"), _pad),
    **dict.fromkeys((*_RESHAPES, "Unflatten"), _reshape),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t", "T", "Permute"), _permute),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "flip": _flip,
    **dict.fromkeys(("pixel_shuffle", "PixelShuffle"), _pixel_shuffle),
    **dict.fromkeys(("pixel_unshuffle", "PixelUnshuffle"), _pixel_unshuffle),
    **dict.fromkeys(("channel_shuffle", "ChannelShuffle"), _channel_shuffle),
}
"""Name of an operation → its rule."""
