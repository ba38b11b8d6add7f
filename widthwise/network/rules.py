"""What each operation does with channels: a rule per family of operations, found by name.

A rule gives the channels of the results, or None where it doesn't know; then all that flows in is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from widthwise.network.calls import Call, Results
from widthwise.network.moves import Channels, chunked, padded, reshaped, sliced
from widthwise.network.ties import CONSTANT
from widthwise.network.tracing import shapes_of_node

__all__ = ["Rule", "rule_for"]

Rule = Callable[[Call], Results | None]

_ELEMENTWISE = frozenset(
    """abs add add_ boolean_dispatch clamp clamp_ clone contiguous cos detach div dropout dropout_ dropout1d dropout2d
    dropout3d elu exp feature_dropout float gelu half hardsigmoid hardswish hardtanh hardtanh_ iadd identity imul
    interpolate isub itruediv leaky_relu leaky_relu_ log maximum minimum mish mul mul_ multiply neg pow prelu relu
    relu6 relu_ round rsqrt rsub selu sigmoid sigmoid_ silu sin softplus softsign sqrt square stochastic_depth sub
    tanh tanh_ to truediv type upsample where""".split()
)
"""Functions that keep channels apart and in order; several tensors meet channel by channel."""

_ARITHMETIC = frozenset("add add_ div iadd imul isub itruediv mul mul_ multiply pow rsub sub truediv".split())

_STATISTICS = "computes its statistics over all channels"
_MIXING = dict.fromkeys(
    "layer_norm LayerNorm group_norm normalize cosine_similarity var var_mean std norm local_response_norm "
    "LocalResponseNorm CrossMapLRN2d".split(),
    _STATISTICS,
) | dict.fromkeys("mean sum amax amin max min logsumexp prod".split(), "reduces the channels to one")

_MODULES = frozenset(f"torch.nn.modules.{name}" for name in ("activation", "dropout", "upsampling", "linear"))


def why_not(name: str) -> str:
    """Why an operation without a rule, or whose rule gave up, can't be followed."""
    return f"flows into {name!r}, which {_MIXING.get(name, 'may mix or move channels')}"


def rule_for(call: Call) -> Rule | None:
    """The rule of an operation."""
    if call.name in _RULES:
        return _RULES[call.name]
    module = call.module
    if module is None:
        return meet if call.name in _ELEMENTWISE else None
    where = type(module).__module__
    if where in ("torch.nn.modules.pooling", "torch.nn.modules.padding"):
        return _pool
    mixing = isinstance(module, nn.MultiheadAttention | nn.Bilinear)
    return meet if where in _MODULES and not mixing and not any(True for _ in module.parameters()) else None


def meet(call: Call) -> Results | None:
    """Tensors that meet channel by channel, after broadcasting."""
    shape, known = call.shape, [source for source in call.sources if call.varying(source) is not None]
    for scalar in call.scalars() if call.name in _ARITHMETIC else ():
        _fix_behind(call, scalar)
    if not known or len(call.shapes) != 1:
        return [None] * len(call.shapes) if not known else None
    axes = set()
    for source in known:
        found = call.varying(source)
        assert found is not None
        axis = found.axis + len(shape) - len(shapes_of_node(source)[0])
        if 0 <= axis < len(shape) and (len(found.labels) > 1 or shape[axis] == 1):
            axes.add(axis)
    if not axes:
        return [None]
    if len(axes) > 1:
        return None
    axis = axes.pop()
    parts = [(source, call.atoms(source, axis, shape[axis])) for source in call.sources]
    full = [(source, atoms) for source, atoms in parts if atoms is not None]
    first = next(atoms for _, atoms in full if (atoms != CONSTANT).any())
    for source, atoms in full:
        what = f"the parameter {source.target!r}, which isn't narrowed," if source.op == "get_attr" else "channels that can't change"
        call.ties.tie(first, atoms, f"meets {what} in {call.node.name!r}")
    return [Channels(axis, first)]


def _fix_behind(call: Call, scalar: fx.Node) -> None:
    """A number that may be computed from channel counts changes the values it meets."""
    stack, seen = [scalar], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if shapes_of_node(node):
            found = call.varying(node)
            if found is not None:
                call.ties.fix(found.labels, f"a number computed from its size is used in {call.node.name!r}")
        else:
            stack.extend(node.all_input_nodes)


def _pool(call: Call) -> Results | None:
    found = call.channels
    if found is None:
        return [None] * len(call.shapes)
    if found.axis != 1 or len(call.before) < 3 or any(shape[:2] != call.before[:2] for shape in call.shapes):
        return None
    return [found] * len(call.shapes)


def _reduce(call: Call) -> Results | None:
    found = call.channels
    if found is None or len(call.sources) > 1:
        return [None] * len(call.shapes) if found is None else None
    axes, rank = call.arg(1, "dim"), len(call.before)
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(axes, list | tuple) or any(not isinstance(axis, int) for axis in axes):
        return None
    reduced = {axis % rank for axis in axes}
    if found.axis in reduced:
        return None
    kept = len(call.shape) == rank
    axis = found.axis if kept else found.axis - sum(axis < found.axis for axis in reduced)
    return [Channels(axis, found.labels)] * len(call.shapes)


def _softmax(call: Call) -> Results | None:
    found, axis = call.channels, call.arg(1, "dim")
    if found is None or (isinstance(axis, int) and axis % len(call.before) != found.axis):
        return [found]
    return None


def _glu(call: Call) -> Results | None:
    found, axis = call.channels, call.arg(1, "dim", -1)
    if found is None or axis % len(call.before) != found.axis:
        return [found]
    return [chunked(call.ties, found, 2)[0]]


def _cat(call: Call) -> Results | None:
    parts = call.node.args[0] if call.node.args else call.node.kwargs["tensors"]
    axis = call.node.kwargs.get("dim", call.node.kwargs.get("axis", call.node.args[1] if len(call.node.args) > 1 else 0))
    if not isinstance(parts, list | tuple) or not isinstance(axis, int):
        return None
    axis %= len(call.shape)
    known = [found for part in parts if (found := call.varying(part)) is not None]
    if any(found.axis != axis for found in known):
        return meet_along(call, parts, known, inserted=None)
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
    return meet_along(call, parts, known, inserted=axis % len(call.shape))


def meet_along(call: Call, parts: Sequence[Any], known: Sequence[Channels], inserted: int | None) -> Results | None:
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


def _layer_norm(call: Call) -> Results | None:
    found, over = call.channels, call.arg(1, "normalized_shape")
    if found is None or (isinstance(over, list | tuple) and found.axis < len(call.before) - len(over)):
        return [found]
    return None


_RULES: dict[str, Rule] = {
    name: rule
    for names, rule in (
        ("cat concat concatenate", _cat),
        ("stack", _stack),
        ("mean sum amax amin", _reduce),
        ("softmax log_softmax Softmax LogSoftmax", _softmax),
        ("glu GLU", _glu),
        ("chunk tensor_split", _chunk),
        ("split", _split),
        ("unbind", _unbind),
        ("getitem", _getitem),
        ("narrow", _narrow),
        ("pad _pad", _pad),
        ("view reshape flatten Flatten squeeze unsqueeze view_as reshape_as unflatten Unflatten", _reshape),
        ("permute transpose swapaxes swapdims t T Permute", _permute),
        ("expand expand_as", _expand),
        ("repeat tile", _repeat),
        ("flip", _flip),
        ("pixel_shuffle PixelShuffle", _pixel_shuffle),
        ("pixel_unshuffle PixelUnshuffle", _pixel_unshuffle),
        ("channel_shuffle ChannelShuffle", _channel_shuffle),
        ("layer_norm LayerNorm", _layer_norm),
        (
            "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
            "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool2d",
            _pool,
        ),
        ("Softmax2d Softmin", lambda _: None),
    )
    for name in names.split()
}
