"""What is used of inductor's insides: its settings and passes, the Python wrapper it generates, and its caches.

Time stamps go between the calls of kernels in that wrapper, as a second code object of the same function, so one
compiled model serves runs with and without them. Which operation a kernel computes, inductor's passes are asked while
it compiles: every node of its graph still knows the submodule it comes from, every constant the nodes that use it,
every buffer the nodes it holds.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

from widthwise.luts.errors import InvalidModel, InvalidTarget
from widthwise.profiling.runtimes.deployment import refusal
from widthwise.profiling.runtimes.reports import Kernel
from widthwise.profiling.runtimes.torch_layers import tensors

__all__ = ["Compiled", "Inductor", "cpp_compiler", "unknown_inductor"]

_THREADS = "compile_threads"
_BEFORE_FUSION = "post_grad_custom_pre_pass"
_AFTER_FUSION = "_post_fusion_custom_pass"
_SETTINGS: dict[str, Any] = {
    "freezing": True,
    "fx_graph_cache": False,  # what comes from this cache has gone through no pass; compiled kernels are cached anyway
}
_SUBMODULE = re.compile(r"\bop_\w+")
_KERNEL = "cpp_"
_LIBRARIES = ("torch", "aten", "extern_kernels", "inductor_ops", "_quantized")
_STAMP = "_widthwise_stamp"


@dataclass(frozen=True)
class Inductor:
    """The parts of PyTorch that are used.

    Attributes:
        config: inductor's settings.
        graph: gives the graph that is being compiled.
        code_cache: keeps generated wrappers.
        compilers: has the pool of threads that wait for C++ compilers.
        forget: takes what dynamo compiled for a code object away.
        cores: this process may run on.
    """

    config: Any
    graph: Any
    code_cache: Any
    compilers: Any
    forget: Callable[[CodeType], None]
    cores: frozenset[int]

    @classmethod
    def of_this_pytorch(cls) -> Inductor:
        """The inductor of the PyTorch installed.

        Raises:
            InvalidTarget: it lacks something; names it, and the version.
        """
        try:
            config = importlib.import_module("torch._inductor.config")
            with config.patch({_THREADS: 1}):  # else some versions start a pool of processes, which would stay
                graph = importlib.import_module("torch._inductor.virtualized").V
                cache = importlib.import_module("torch._inductor.codecache").PyCodeCache
                pool = importlib.import_module("torch._inductor.async_compile").AsyncCompile
            forget = importlib.import_module("torch._dynamo.eval_frame").reset_code
            for name in (*_SETTINGS, _BEFORE_FUSION, _AFTER_FUSION):
                getattr(config, name)
            for owner, name in ((cache, "modules"), (cache, "modules_no_attr"), (pool, "pool")):
                getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise unknown_inductor(str(error)) from error
        return cls(config, graph, cache, pool, forget, _cores())

    def compile(self, model: nn.Module, inputs: Sequence[torch.Tensor], threads: int) -> Compiled:
        """Compiles, as the first call does.

        Raises:
            InvalidModel: inductor doesn't take the model, or not as one graph.
            InvalidTarget: what it generates isn't what this module can read.
        """
        compiled = torch.compile(_fresh_function(model, self.forget), fullgraph=True, dynamic=False)
        origins = _Origins(self.graph)
        settings = {
            **_SETTINGS,
            _THREADS: max(2, len(self.cores)),  # with one inductor makes no use of a pool
            "cpp.threads": threads,
            _BEFORE_FUSION: origins.before_fusion,
            _AFTER_FUSION: origins.after_fusion,
        }
        with self._kept_apart() as modules, self._all_cores():
            try:
                with torch.inference_mode(), self.config.patch(settings):
                    compiled(*inputs)
            except Exception as error:  # dynamo's and inductor's own have no common ancestor
                raise refusal("inductor", error) from error
            wrappers = [module for module in modules if hasattr(module, "call")]
        if len(wrappers) != 1:
            raise InvalidModel(f"inductor can't run this network as one graph: it made {len(wrappers)}")
        return Compiled(compiled, inputs, _Wrapper.of(wrappers[0], origins))

    @contextmanager
    def _kept_apart(self) -> Iterator[list[ModuleType]]:
        """The modules inductor generates meanwhile; it would keep them, with their weights, until the process ends."""
        modules: list[ModuleType] = []
        before = set(sys.modules)
        with (
            mock.patch.object(self.code_cache, "modules", modules),
            mock.patch.object(self.code_cache, "modules_no_attr", {}),
        ):
            try:
                yield modules
            finally:
                for name in {module.__name__ for module in modules} - before:
                    sys.modules.pop(name, None)

    @contextmanager
    def _all_cores(self) -> Iterator[None]:
        """C++ compilers run on all cores this process had before it was pinned, and no thread of theirs stays."""
        count = max(1, len(self.cores))
        with (
            ThreadPoolExecutor(count, initializer=_unpin, initargs=(self.cores,)) as pool,
            mock.patch.object(self.compilers, "pool", staticmethod(lambda: pool)),
        ):
            yield


def _cores() -> frozenset[int]:
    """Where this process may run; empty where that can't be said."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _unpin(cores: frozenset[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def _fresh_function(model: nn.Module, forget: Callable[[CodeType], None]) -> Callable[..., Any]:
    """A call of the model, with a code object and globals of its own.

    Dynamo counts what it compiles by code object, and after eight narrowed copies of one network it would run the ninth
    in eager PyTorch. What it compiled it keeps with the code, and among the globals; both are to go with the function.
    """

    def deployed(*inputs: torch.Tensor) -> Any:
        return model(*inputs)

    function = FunctionType(deployed.__code__.replace(), {**globals()}, closure=deployed.__closure__)
    weakref.finalize(function, forget, function.__code__).atexit = False
    return function


class _Origins:
    """Which operations the constants and buffers of inductor's graph belong to, gathered by two of its passes."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._users: dict[int, set[str]] = {}
        self._constants: dict[str, str] = {}
        self._buffers: dict[str, tuple[int, str]] = {}

    def before_fusion(self, graph: fx.Graph) -> None:
        """Convolutions haven't yet been merged into what follows them, which forgets them."""
        module = graph.owning_module
        for node in graph.nodes:
            operation = _operation(node)
            for source in node.all_input_nodes if operation else ():
                if source.op == "get_attr":
                    tensor = getattr(module, str(source.target), None)
                    self._users.setdefault(id(tensor), set()).add(str(operation))

    def after_fusion(self, nodes: list[Any]) -> list[Any]:
        """Buffers have their names and their order."""
        lowered = self._graph.graph
        for name, tensor in lowered.constants.items():
            users = self._users.get(id(tensor), set())
            if len(users) == 1:
                self._constants[name] = next(iter(users))
        places = {node: place for place, node in enumerate(lowered.module.graph.nodes)}
        for leaf in (leaf for node in nodes for leaf in node.get_nodes()):
            origins = sorted(leaf.node.origins if leaf.node else (), key=lambda node: places.get(node, -1))
            operations = list(filter(None, map(_operation, origins)))
            for name in leaf.get_buffer_names() if operations else ():
                self._buffers[name] = (len(self._buffers), self._writer(operations))
        return nodes

    def _writer(self, operations: Sequence[str]) -> str:
        """The last of the operations a buffer holds; one with constants may only be what the buffer is prepared for."""
        weighted = {user for users in self._users.values() for user in users}
        return next((operation for operation in reversed(operations) if operation not in weighted), operations[-1])

    def operations(self, names: Sequence[str]) -> tuple[str, ...]:
        """What a kernel that is called with these computes, the most telling first.

        Constants tell more than buffers: a convolution merged with an addition and what follows writes, for inductor,
        the last one's result. Of buffers the one scheduled last is what the kernel writes, the others it reads.
        """
        buffers = sorted((self._buffers[name] for name in names if name in self._buffers), reverse=True)
        constants = (self._constants[name] for name in names if name in self._constants)
        return (*constants, *(operation for _, operation in buffers))


def _operation(node: fx.Node) -> str | None:
    """The submodule of a deployable network a node comes from, such as ``op_conv1``."""
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        found = _SUBMODULE.search(str(path))
        if found:
            return found[0]
    return None


@dataclass
class _Wrapper:
    """The function that calls the kernels, in two versions; the plain one is in place.

    Attributes:
        operations: of each kernel, in the order of their calls.
        stamps: of the last run with stamps, in nanoseconds; one before the first kernel and one after each.
    """

    function: FunctionType
    plain: CodeType
    stamped: CodeType
    operations: list[tuple[str, ...]]
    stamps: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, module: ModuleType, origins: _Origins) -> _Wrapper:
        """That of a generated module."""
        function = getattr(module.call, "__func__", module.call)
        plain = function.__code__
        place = (plain.co_name, plain.co_firstlineno)
        functions = (
            node for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
            if isinstance(node, ast.FunctionDef)
        )  # fmt: skip
        definition = next((node for node in functions if (node.name, node.lineno) == place), None)
        if definition is None:
            raise unknown_inductor("the generated code has no function call")
        calls = _with_stamps(definition)
        if not calls:
            raise unknown_inductor("the generated code calls no kernel")
        scope: dict[str, Any] = {}
        exec(compile(ast.Module([definition], []), str(module.__file__), "exec"), scope)
        operations = [
            origins.operations([node.id for node in ast.walk(call) if isinstance(node, ast.Name)]) for call in calls
        ]
        wrapper = cls(function, plain, scope[definition.name].__code__, operations)
        stamps = wrapper.stamps
        setattr(module, _STAMP, lambda: stamps.append(time.perf_counter_ns()))
        return wrapper

    @contextmanager
    def stamping(self) -> Iterator[None]:
        """Runs meanwhile leave stamps."""
        self.stamps.clear()
        self.function.__code__ = self.stamped
        try:
            yield
        finally:
            self.function.__code__ = self.plain


def _with_stamps(definition: ast.FunctionDef) -> list[ast.stmt]:
    """Puts stamps into the function; the statements that call kernels."""
    calls = [statement for statement in definition.body if _calls_a_kernel(statement)]
    stamp = ast.parse(f"{_STAMP}()").body
    body = list(stamp)
    for statement in definition.body:
        body += [statement, *(stamp if statement in calls else ())]
    definition.body = body
    ast.fix_missing_locations(definition)
    return calls


def _calls_a_kernel(statement: ast.stmt) -> bool:
    called = getattr(statement, "value", None)
    if not isinstance(statement, ast.Expr | ast.Assign) or not isinstance(called, ast.Call):
        return False
    root = called.func
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name):
        return False
    return root.id.startswith(_KERNEL) if root is called.func else root.id in _LIBRARIES


class Compiled:
    """A compiled model and its example.

    Args:
        call: of the model.
        inputs: of every call.
        wrapper: the function that calls the kernels.
    """

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], wrapper: _Wrapper) -> None:
        self._call = call
        self._inputs = inputs
        self.wrapper = wrapper

    def run(self) -> float:
        """Seconds of wall time."""
        with torch.inference_mode():
            start = time.perf_counter_ns()
            self._call(*self._inputs)
            return (time.perf_counter_ns() - start) * 1e-9

    def run_stamped(self) -> tuple[float, list[Kernel]]:
        """Seconds of wall time, and the kernels.

        Raises:
            InvalidTarget: another code was run than was compiled.
        """
        with self.wrapper.stamping():
            elapsed_s = self.run()
        stamps, operations = self.wrapper.stamps, self.wrapper.operations
        if len(stamps) != len(operations) + 1:
            raise InvalidTarget("PyTorch compiled this network again, or runs it eagerly; time it within active()")
        return elapsed_s, [
            Kernel(names, (after - before) * 1e-9, forward=not names)  # inductor's own prepare what comes next
            for names, (before, after) in zip(operations, pairwise(stamps), strict=True)
        ]

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """What the model gives for the example, as float32."""
        with torch.inference_mode():
            return tensors(self._call(*self._inputs))


def cpp_compiler() -> str:
    """The first line a C++ compiler says of its version.

    Raises:
        InvalidTarget: inductor finds none.
    """
    try:
        find = importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler
    except (ImportError, AttributeError) as error:
        raise unknown_inductor(str(error)) from error
    try:
        command = find()
        path = shutil.which(command)
        if path is None:
            raise FileNotFoundError(command)
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except Exception as error:  # inductor's own class for it is another one in each version
        raise InvalidTarget(
            "target torch-compile:cpu needs a C++ compiler, and inductor finds none that works "
            f"({' '.join(str(error).split())[:200]}); install g++ (apt install g++, dnf install gcc-c++) "
            "or name one in the environment variable CXX"
        ) from error
    return said.partition("\n")[0].strip()


def unknown_inductor(what: str) -> InvalidTarget:
    """What is raised where this PyTorch's inductor lacks something used here."""
    return InvalidTarget(
        f"target torch-compile:cpu can't read what PyTorch {torch.__version__} compiles ({what}); "
        "it is tested with PyTorch 2.14"
    )
