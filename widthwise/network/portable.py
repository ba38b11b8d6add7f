"""A traced network as plain data, and the network back from it: for models whose code isn't at hand.

What :func:`as_data` writes names only what :mod:`widthwise.network.vocabulary` lists, with plain arguments, and
:func:`from_data` takes nothing else: data from elsewhere can compose known operations but choose no other code. (A
``torch.export`` program can't be taken from elsewhere: see docs/artifacts.md.)
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import fx, nn

from widthwise.luts.errors import InvalidModel
from widthwise.network.vocabulary import ATTRIBUTES, FUNCTIONS, METHODS, MODULES

__all__ = ["GraphData", "NotPortable", "as_data", "from_data"]

_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"
_PATH = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
_MOST_DEPTH = 8
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_Identifier = Annotated[str, Field(pattern=_IDENTIFIER, max_length=200)]
_Path = Annotated[str, Field(pattern=_PATH, max_length=500)]

_NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}


class NotPortable(Exception):
    """A model that can't be said as data; the message says which part of it."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModuleData(_Data):
    """A module of ``torch.nn`` by its class and the arguments it is made with."""

    kind: str
    options: dict[_Identifier, Any]


class TensorData(_Data):
    """A parameter or buffer that belongs to no such module."""

    shape: list[Annotated[int, Field(ge=0)]]
    trained: bool


class OperationData(_Data):
    """A node of the graph."""

    name: _Identifier
    op: Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]
    target: str
    args: list[Any] = []
    kwargs: dict[_Identifier, Any] = {}


class GraphData(_Data):
    """A network as data: modules and tensors by their paths, operations in order of execution."""

    modules: dict[_Path, ModuleData]
    tensors: dict[_Path, TensorData]
    operations: list[OperationData]


def as_data(model: nn.Module) -> GraphData:
    """The traced model as data; its weights stay in its state dict.

    Raises:
        NotPortable: it can't be traced, or uses a module, a function or an argument that isn't on the lists.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU())
        >>> [operation.target for operation in as_data(model).operations]
        ['input', '0', '1', 'output']
    """
    try:
        graph = _trace(model)
    except Exception as error:  # torch.fx raises what it likes
        raise NotPortable(f"it can't be traced ({str(error).strip().splitlines()[0]})") from error
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    if odd := next((path for path in called if not re.match(_PATH, path)), None):
        raise NotPortable(f"it has a module named {odd!r}")
    modules = {path: _module_data(path, graph.get_submodule(path)) for path in sorted(called)}
    owned = {f"{path}.{name}" for path in modules for name in graph.get_submodule(path).state_dict()}
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors = {
        name: TensorData(shape=list(tensor.shape), trained=name in trained)
        for name, tensor in model.state_dict().items()
        if name not in owned
    }
    operations = [_operation_data(node, tensors.keys() | owned) for node in graph.graph.nodes]
    return GraphData(modules=modules, tensors=tensors, operations=operations)


def from_data(data: GraphData) -> nn.Module:
    """The network of such data, on the meta device: its weights are to be assigned from a state dict.

    Raises:
        InvalidModel: the data names what isn't on the lists, or doesn't hang together.

    Example:
        >>> again = from_data(as_data(nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU())))
        >>> again.load_state_dict(nn.Sequential(nn.Conv2d(3, 7, 3)).state_dict(), assign=True)
        <All keys matched successfully>
    """
    root = nn.Module()
    try:
        with torch.device("meta"):
            for path, module in data.modules.items():
                _place(root, path).add_module(path.rpartition(".")[2], _module(path, module))
            _add_tensors(root, data.tensors)
            made = fx.GraphModule(root, _graph(data.operations, root)).eval()
            _add_tensors(made, data.tensors)  # it took over only what the graph reads
        return made
    except InvalidModel:
        raise
    except Exception as error:  # what hostile data makes torch raise
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InvalidModel(f"the stored graph is corrupt: {reason[:160]}") from error


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph, with the inside of modules that aren't PyTorch's own, and without what does nothing in eval mode."""
    graph = fx.GraphModule(model, fx.Tracer().trace(model))
    for node in list(graph.graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name == "stochastic_depth" and not node.kwargs.get("training", (*node.args, True)[3]):
            node.replace_all_uses_with(node.args[0])
        if name in ("_assert", "stochastic_depth") and not node.users:
            graph.graph.erase_node(node)
    return graph


def _module_data(path: str, module: nn.Module) -> ModuleData:
    kind = type(module).__name__
    if kind not in MODULES or type(module) is not getattr(nn, kind, None):
        raise NotPortable(f"{path} is a {type(module).__module__}.{kind}, no plain module of torch.nn")
    options = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in ("device", "dtype") or parameter.kind not in _BY_NAME:
            continue
        if name == "bias" and not isinstance(getattr(module, "bias", None), bool):
            options[name] = module.bias is not None
        elif hasattr(module, name):
            options[name] = _plain(getattr(module, name), path)
        elif parameter.default is inspect.Parameter.empty:
            raise NotPortable(f"{path}, a {kind}, doesn't say its {name}")
    return ModuleData(kind=kind, options=options)


def _module(path: str, data: ModuleData) -> nn.Module:
    if data.kind not in MODULES or not hasattr(nn, data.kind):
        raise InvalidModel(f"the stored graph asks for {data.kind!r} at {path!r}, which widthwise makes no module of")
    options = {name: _value(option, {}) for name, option in data.options.items()}
    made = getattr(nn, data.kind)(**options)
    assert isinstance(made, nn.Module)
    return made


def _operation_data(node: fx.Node, tensors: set[str]) -> OperationData:
    target = str(node.target)
    if node.op == "call_function":
        if node.target not in _NAMES or (node.target is getattr and node.args[1] not in ATTRIBUTES):
            name = getattr(node.target, "__name__", target)
            raise NotPortable(f"it calls {getattr(node.target, '__module__', '')}.{name}")
        target = _NAMES[node.target]
    elif node.op == "call_method" and target not in METHODS:
        raise NotPortable(f"it calls the method {target} of a tensor")
    elif node.op == "get_attr" and target not in tensors:
        raise NotPortable(f"it reads {target}, which its state dict doesn't hold")
    elif node.op == "placeholder" and not re.match(_IDENTIFIER, target):
        raise NotPortable(f"it takes the arguments {target}")
    return OperationData(
        name=node.name,
        op=node.op,  # type: ignore[arg-type]
        target=target,
        args=[_plain(argument, node.name) for argument in node.args],
        kwargs={name: _plain(argument, node.name) for name, argument in node.kwargs.items()},
    )


def _graph(operations: list[OperationData], root: nn.Module) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for data in operations:
        if data.name in nodes:
            raise InvalidModel(f"the stored graph is corrupt: two operations are named {data.name!r}")
        args = tuple(_value(argument, nodes) for argument in data.args)
        kwargs = {name: _value(argument, nodes) for name, argument in data.kwargs.items()}
        nodes[data.name] = graph.create_node(data.op, _target(data, args, root), args, kwargs, name=data.name)
    graph.lint()
    return graph


def _target(data: OperationData, args: tuple[Any, ...], root: nn.Module) -> Any:
    """What a node calls; only what is on the lists, since the graph is made into code."""
    known = {
        "placeholder": re.match(_IDENTIFIER, data.target),
        "output": data.target == "output",
        "get_attr": re.match(_PATH, data.target) and data.target in root.state_dict(keep_vars=True),
        "call_module": re.match(_PATH, data.target) and data.target in dict(root.named_modules()),
        "call_method": data.target in METHODS,
        "call_function": data.target in FUNCTIONS,
    }
    if not known[data.op]:
        raise InvalidModel(f"the stored graph calls {data.target[:80]!r}, which isn't among the operations it may use")
    if data.target == "getattr" and data.op == "call_function" and (len(args) != 2 or args[1] not in ATTRIBUTES):
        raise InvalidModel(f"the stored graph reads {args[1:]}, which isn't among the attributes it may read")
    return FUNCTIONS[data.target] if data.op == "call_function" else data.target


def _plain(value: Any, where: str) -> Any:
    """An argument as JSON; what JSON has no word for becomes an object of one key."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_plain(part, where) for part in value]}
    if isinstance(value, list):
        return [_plain(part, where) for part in value]
    if isinstance(value, slice):
        return {"slice": [_plain(part, where) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(part, where) for key, part in value.items()}}
    if value is Ellipsis:
        return {"ellipsis": []}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise NotPortable(f"{where} is given a {type(value).__name__}")


def _value(data: Any, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """The argument :func:`_plain` wrote."""
    if depth > _MOST_DEPTH:
        raise InvalidModel("the stored graph is corrupt: its arguments are nested too deeply")
    if isinstance(data, list):
        return [_value(part, nodes, depth + 1) for part in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in ("tuple", "slice"):
        parts = [_value(part, nodes, depth + 1) for part in content]
        return tuple(parts) if kind == "tuple" else slice(*parts)
    if kind == "dict":
        return {str(key): _value(part, nodes, depth + 1) for key, part in content.items()}
    return _word(kind, content, nodes)


def _word(kind: str, content: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if kind == "node" and content in nodes:
        return nodes[content]
    if kind == "float":
        return float(content)
    if kind == "dtype" and isinstance(getattr(torch, content, None), torch.dtype):
        return getattr(torch, content)
    if kind == "ellipsis":
        return ...
    raise InvalidModel(f"the stored graph is corrupt: no argument is the {kind[:40]} {str(content)[:40]!r}")


def _add_tensors(root: nn.Module, tensors: Mapping[str, TensorData]) -> None:
    present = root.state_dict(keep_vars=True)
    for path, tensor in tensors.items():
        if path in present:
            continue
        owner, leaf, empty = _place(root, path), path.rpartition(".")[2], torch.empty(tensor.shape)
        if tensor.trained:
            owner.register_parameter(leaf, nn.Parameter(empty))
        else:
            owner.register_buffer(leaf, empty)


def _place(root: nn.Module, path: str) -> nn.Module:
    """The module a path's last part belongs to, made of empty modules where it isn't there yet."""
    owner = root
    for name in path.split(".")[:-1]:
        if name not in owner._modules:
            owner.add_module(name, nn.Module())
        inner = owner._modules[name]
        assert inner is not None
        owner = inner
    return owner
