"""The graph as a mixed-integer program: binary one-hots, and one continuous variable for each pair of options.

For each node ``Σ x = 1``; for each table ``y ≥ 0`` with ``Σ_j y_ij = x_i`` and ``Σ_i y_ij = z_j``; for each
concatenation ``t_s = Σ y_ij`` over the pairs that make the total ``s``. With binary one-hots of the groups all else
is integral by itself. The model holds no objective: every amount is a vector over its columns, and any of them may be
the objective or a limit.

Source: the local-consistency polytope, as in MDP (CVPR 2025); solved by HiGHS through ``scipy.optimize.milp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from widthwise.planner.bounds import Mask
from widthwise.planner.graph import Floats, Graph, Ints, Table

__all__ = ["Limit", "Model", "Solution"]

_INFEASIBLE = 2
_OBJECTIVE_SCALE = 1e3
_LIMIT_SCALE = 1e4
"""A limit's row is scaled to this, which makes HiGHS's absolute tolerance of 1e-6 a relative one of 1e-10."""


@dataclass(frozen=True)
class Limit:
    """``coefficients · columns`` is at most ``value``."""

    coefficients: Floats
    value: float


@dataclass(frozen=True)
class Solution:
    """What HiGHS found.

    Args:
        options: for each group the chosen option, or None where none was found.
        bound: no feasible choice has a lower objective (-inf where unknown, inf where none is feasible).
    """

    options: Ints | None
    bound: float


class Model:
    """Columns, and the rows that tie them, of a graph restricted to some options and some pairs of options.

    Args:
        graph: the graph; its first ``groups`` nodes are binary.
        groups: how many.
        options: for each node which options to have, shape ``(options,)`` each.
        pairs: for each table which entries to have, the shape of the table.

    Attributes:
        amounts: of each column, shape ``(amounts, columns)``, without the graph's constants.
    """

    def __init__(self, graph: Graph, groups: int, options: Sequence[Mask], pairs: Sequence[Mask]) -> None:
        self._size, self._rows = 0, 0
        self._triplets: list[tuple[Ints, Ints, Floats]] = []
        self._equals: list[Floats] = []
        self._kept = [np.flatnonzero(mask) for mask in options]
        self._columns = [self._new(len(kept)) for kept in self._kept]
        entries = [np.nonzero(mask) for mask in pairs]
        blocks = [self._new(len(left)) for left, _ in entries]
        self.amounts = np.zeros((len(graph.constants), self._size))
        self._groups = groups
        for node, kept, columns in zip(graph.nodes, self._kept, self._columns, strict=True):
            self.amounts[:, columns] = node.amounts[:, kept]
            self._add(np.zeros(len(kept), dtype=np.int64), columns, np.ones(len(kept)), np.ones(1))
        for table, (left, right), columns in zip(graph.tables, entries, blocks, strict=True):
            self.amounts[:, columns] = table.amounts[:, left, right]
            self._tie(table, left, right, columns)

    def minimise(
        self, objective: Floats, limits: Sequence[Limit], *, relative_gap: float, time_limit_s: float
    ) -> Solution:
        """The least ``objective · columns`` within the limits."""
        if not all(len(kept) for kept in self._kept):
            return Solution(None, np.inf)
        binary = np.zeros(self._size)
        for columns in self._columns[: self._groups]:
            binary[columns] = 1
        scale = _OBJECTIVE_SCALE / (float(np.abs(objective).max(initial=0.0)) or 1.0)
        result = milp(
            objective * scale,
            integrality=binary,
            bounds=Bounds(0, 1),
            constraints=self._constraints(limits),
            options={"mip_rel_gap": relative_gap, "time_limit": max(time_limit_s, 0.1)},
        )
        if result.x is None:
            return Solution(None, np.inf if result.status == _INFEASIBLE else -np.inf)
        groups = zip(self._kept[: self._groups], self._columns, strict=False)
        options = np.array([kept[int(result.x[columns].argmax())] for kept, columns in groups])
        bound = result.mip_dual_bound
        return Solution(options, -np.inf if bound is None else float(bound) / scale)

    def excluding(self, options: Ints) -> Limit:
        """A limit that forbids exactly this choice of the groups' options."""
        coefficients = np.zeros(self._size)
        for kept, columns, option in zip(self._kept, self._columns, options, strict=False):
            coefficients[columns[kept == option]] = 1
        return Limit(coefficients, len(options) - 1)

    def _new(self, count: int) -> Ints:
        self._size += count
        return np.arange(self._size - count, self._size)

    def _add(self, rows: Ints, columns: Ints, values: Floats, equals: Floats) -> None:
        self._triplets.append((rows + self._rows, columns, values))
        self._equals.append(equals)
        self._rows += len(equals)

    def _tie(self, table: Table, left: Ints, right: Ints, columns: Ints) -> None:
        """Each option of a table's nodes is taken as much as its pairs are."""
        of_pair = [left, right]
        if table.option is not None:
            of_pair.append(table.option[left, right])
        for node, option in zip(table.scope, of_pair, strict=True):
            own = self._columns[node]
            rows = np.concatenate([np.searchsorted(self._kept[node], option), np.arange(len(own))])
            values = np.concatenate([np.ones(len(columns)), -np.ones(len(own))])
            self._add(rows, np.concatenate([columns, own]), values, np.zeros(len(own)))

    def _constraints(self, limits: Sequence[Limit]) -> list[LinearConstraint]:
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self._triplets, strict=True))
        matrix = sparse.csr_array((values, (rows, columns)), shape=(self._rows, self._size))
        equals = np.concatenate(self._equals)
        constraints = [LinearConstraint(matrix, equals, equals)]
        for limit in limits:
            scale = _LIMIT_SCALE / (abs(limit.value) or float(np.abs(limit.coefficients).max(initial=0.0)) or 1.0)
            row = sparse.csr_array(limit.coefficients[None, :] * scale)
            constraints.append(LinearConstraint(row, -np.inf, limit.value * scale))
        return constraints
