"""What each operation does with channels: a rule per family of operations, found by name.

A rule gives the channels of the results, or None where it doesn't know; then all that flows in is fixed.
"""

from __future__ import annotations

from torch import fx, nn

from widthwise.network.calls import Call, Results, Rule
from widthwise.network.moves import Channels
from widthwise.network.rearranging import REARRANGING
from widthwise.network.ties import CONSTANT
from widthwise.network.tracing import shapes_of_node

__all__ = ["meet", "rule_for", "why_not"]

_NAMES = """
abs add add_ boolean_dispatch clamp clamp_ clone contiguous cos detach div dropout dropout1d dropout2d dropout3d
dropout_ elu exp feature_dropout float gelu half hardsigmoid hardswish hardtanh hardtanh_ iadd identity imul
interpolate isub itruediv leaky_relu leaky_relu_ log maximum minimum mish mul mul_ multiply neg pow prelu relu relu6
relu_ round rsqrt rsub selu sigmoid sigmoid_ silu sin softplus softsign sqrt square stochastic_depth sub tanh tanh_ to
truediv type upsample where
"""
_ELEMENTWISE = frozenset(_NAMES.split())
"""Functions that keep channels apart and in order; several tensors meet channel by channel."""

_ARITHMETIC = frozenset(
    (
        "add",
        "add_",
        "div",
        "iadd",
        "imul",
        "isub",
        "itruediv",
        "mul",
        "mul_",
        "multiply",
        "pow",
        "rsub",
        "sub",
        "truediv",
    )
)

_STATISTICS = "computes its statistics over all channels"
_REDUCTION = "reduces the channels to one"
_MIXING = {
    **dict.fromkeys(("layer_norm", "LayerNorm", "group_norm", "normalize", "cosine_similarity"), _STATISTICS),
    **dict.fromkeys(("var", "var_mean", "std", "norm", "local_response_norm", "LocalResponseNorm"), _STATISTICS),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "logsumexp", "prod"), _REDUCTION),
}

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
        what = (
            f"the parameter {source.target!r}, which isn't narrowed,"
            if source.op == "get_attr"
            else "channels that can't change"
        )
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


def _layer_norm(call: Call) -> Results | None:
    found, over = call.channels, call.arg(1, "normalized_shape")
    if found is None or (isinstance(over, list | tuple) and found.axis < len(call.before) - len(over)):
        return [found]
    return None


_POOLS = tuple(
    f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for rank in (1, 2, 3)
)

_RULES: dict[str, Rule] = {
    **REARRANGING,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("layer_norm", "LayerNorm"), _layer_norm),
    **dict.fromkeys(("Softmax2d", "Softmin"), lambda _: None),
    **dict.fromkeys(_POOLS, _pool),
}
