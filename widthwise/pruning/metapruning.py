"""MetaPruning: train one network that makes weights for any widths, then search the widths that do best on them.

Source: Liu et al., MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning, ICCV 2019 (1903.10258).
Every training step runs at widths drawn at random; the search evaluates widths on the weights made for them. A range of
predicted latency takes the place of the paper's FLOPs, and an exact plan and its neighbours begin the search.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from widthwise.luts.errors import BadInput, InvalidPlan
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.planner.importance import from_weights, score
from widthwise.planner.plan import Certificate, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.pruning.candidates import Space
from widthwise.pruning.evaluation import evaluate, recalibrate
from widthwise.pruning.evolution import IterationReport, SearchResult, SearchSettings, search
from widthwise.pruning.executor import Executor, examples_of, narrowed_groups, traced_for
from widthwise.pruning.parameters import by_decay
from widthwise.pruning.pruning_net import PruningNet, restart

__all__ = ["RATIOS", "MetaPruning"]

Start = Literal["dense", "generated", "scratch"]
STARTS = get_args(Start)

RATIOS = tuple((10 + 3 * index) / 100 for index in range(31))
"""Width ratios of the paper: 0.10, 0.13, …, 1.00."""

_ROUNDING = 1e-9
"""By so much, relatively, a plan that spends its whole budget may seem to exceed it."""

_AS_IN_THE_PAPER = SearchSettings()


class MetaPruning(Executor):
    """A PruningNet in the user's loop, then :meth:`search`, then :meth:`finish`.

    All free groups of the network vary, those that the plan keeps whole included. The PruningNet has some 32 times the
    layers' weights, and gradients and momentum for each.

    Args:
        model: the dense model; left as it is.
        plan: an exact plan made for it: its budget bounds the search, its widths begin it, and they are what is run in
            eval mode, and met by :meth:`finish`, until a search found others.
        example: one tensor per input; random ones of the plan's shapes by default.
        predictor: of the model's latency, from the table that the plan was made from.
        steps: of the whole run; nothing here depends on them, they are taken so that all executors are made alike.
        seed: of the widths drawn in training and of the generators' first weights.
        ratios: width ratios to draw from in training; each group keeps at least 1 channel.
        options: group → widths to search among, as :func:`widthwise.network.granularity.options_from` gives them; by
            default what the ratios give. The plan's own widths always belong to them.
        warm_start: start from the model's weights, see :class:`PruningNet`; the paper starts at random.

    Attributes:
        plan: the exact plan; after :meth:`search` that of the widths found.
        result: what the last search found, None before.

    Raises:
        InvalidPlan: the plan is for another model, or removes nothing.
        InvalidModel: the options name an unknown group, or widths it can't have.
        BadInput: ratios outside (0, 1], a negative seed, a predictor of another model, or a plan within further limits.

    Example:
        >>> run = MetaPruning(model, plan, [images], predictor=predictor)  # doctest: +SKIP
        >>> loss = criterion(run.model(x), y); loss.backward()  # doctest: +SKIP
        >>> run.before_step(step); optimizer.step()  # doctest: +SKIP
        >>> train_loader, validation_loader = hold_out(loader)  # doctest: +SKIP
        >>> run.search(train_loader, validation_loader).accuracy  # doctest: +SKIP
        >>> small = run.finish()  # doctest: +SKIP
    """

    model: PruningNet

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Sequence[Tensor] | None = None,
        *,
        predictor: LatencyPredictor,
        steps: int | None = None,
        seed: int = 0,
        ratios: Sequence[float] = RATIOS,
        options: Mapping[str, Sequence[int]] | None = None,
        warm_start: bool = True,
    ) -> None:
        if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
            raise BadInput(f"ratios must be above 0 and at most 1, got {list(ratios)}; the paper's are RATIOS")
        if seed < 0 or (steps is not None and steps < 1):
            raise BadInput(f"seed must be 0 or above and steps at least 1, got {seed=}, {steps=}")
        network = traced_for(plan, model, tuple(example) if example is not None else examples_of(plan))
        if predictor.network.signature != plan.signature:
            raise BadInput(
                f"the predictor is of {predictor.network.name}, the plan of {plan.model}; make one from the plan's "
                "table: LatencyPredictor.fit(lut, network)"
            )
        narrowed_groups(plan)
        _require_latency_alone(plan)
        self._predictor, self._exact, self._seed, self._ratios = predictor, plan, seed, tuple(ratios)
        self._dense, self._network = model, network
        self._importance = score(model, network, from_weights(plan.criterion))
        self._options = _options(network, plan, self._ratios, options)
        self._step = 0
        self.result: SearchResult | None = None
        self.model = PruningNet(
            model, network, list(network.dense), self._importance, warm_start=warm_start, seed=seed
        ).train(model.training)
        self._use(plan)
        self.model.widths = self.drawn(0)

    def before_step(self, step: int) -> None:
        """Draws the widths of the next step; ``backward`` is done with those of this one."""
        self._step = step + 1
        self.model.widths = self.drawn(self._step)

    def drawn(self, step: int) -> dict[str, int]:
        """The widths of a step; they depend on the seed and the step alone, so all processes draw the same."""
        dense = self._exact.dense
        indices = np.random.default_rng([self._seed, step]).integers(len(self._ratios), size=len(dense))
        return {
            group: _width(size, self._ratios[index])
            for (group, size), index in zip(sorted(dense.items()), indices, strict=True)
        }

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """Weight decay on the weights of the generators' FCs and on ordinary ones; none elsewhere, as in the paper.

        With a warm start the trained weights are the second FCs' biases, so it pulls towards them and not to zero.

        Args:
            lr: what the optimizer gets. Generators then take it divided by :attr:`PruningNet.gain`, so that the weights
                they make move as ordinary ones would. Without that a trained ResNet-20's weights grew to 2.6 times
                their norm in 320 steps at 0.05, and candidates reached 20 % instead of 25 %.
        """
        if lr is None:
            return by_decay(self.model)
        generators = by_decay(self.model.generators)
        ordinary = by_decay(self.model, without=self.model.generators.parameters())
        return [*({**group, "lr": lr / self.model.gain} for group in generators), *ordinary]

    def search(
        self,
        train_loader: DataLoader[Any],
        validation_loader: DataLoader[Any],
        *,
        settings: SearchSettings = _AS_IN_THE_PAPER,
        on_progress: Callable[[IterationReport], None] | None = None,
        snapshot: Path | None = None,
    ) -> SearchResult:
        """Looks for the widths of the best accuracy within the budget; :attr:`plan` and :meth:`finish` then have them.

        The window begins at the plan's own latency where that is lower: of few widths, none may be nearer.
        A candidate's accuracy is measured after its norms are recalibrated on training batches, always the same ones.

        Args:
            validation_loader: images that were not trained on, and not the test data, which could then no longer judge
                what is found; see :func:`widthwise.pruning.holdout.hold_out`.
            on_progress: called after each iteration.
            snapshot: JSON file that is written after each iteration and taken up where it exists.

        Raises:
            EmptyWindow: no widths were found in the window.
            InvalidSnapshot: the file is corrupt, or of another search or other weights.
            InvalidBatch: a loader gives no batches.
        """

        def fitness(widths: dict[str, int]) -> float:
            small = self.model.materialise(widths)
            with _repeatable((train_loader, validation_loader), settings.seed):
                recalibrate(small, train_loader, settings.recalibration_batches)
                return evaluate(small, validation_loader).accuracy

        budget_ms = self._exact.budget_ms
        self.result = search(
            Space(
                self._options,
                self._predictor.predict_many,
                low_ms=min(settings.window * budget_ms, self._exact.predicted_ms * (1 - _ROUNDING)),
                high_ms=budget_ms * (1 + _ROUNDING),
            ),
            fitness,
            settings,
            start=self._exact.widths,
            key=f"{_digest(self.model)} {_length(train_loader)} {_length(validation_loader)}",
            on_progress=on_progress,
            snapshot=snapshot,
        )
        self._use(self._searched(self.result))
        return self.result

    def finish(self, *, start: Start = "dense") -> nn.Module:
        """The narrow model of :attr:`plan`'s widths; recalibrate it and train it on.

        Args:
            start: ``dense``: the dense model's own weights. ``generated``: those that the search judged the widths by.
                ``scratch``: all drawn anew by the layers' own ``reset_parameters``, as the paper does before it trains
                what it found; what a model's constructor does beyond that is not repeated. A ResNet-20 at half its
                latency, after 320 steps of training the PruningNet and 320 of fine-tuning: 62 % from dense weights,
                32 % from generated ones.

        Raises:
            BadInput: another start.
        """
        if start not in STARTS:
            raise BadInput(f"no start {start!r}; there are {', '.join(STARTS)}")
        if start == "dense":
            small = narrow(self._dense, self._network, self.plan.kept)
            return small.to(next(self.model.parameters()).device)
        small = self.model.materialise(self.plan.widths)
        if start == "scratch":
            restart(small)
        return small

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "step": self._step, "plan": self.plan.model_dump_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from :meth:`state_dict`.

        Raises:
            InvalidPlan: the state is no run's, or of one for another model or budget.
        """
        try:
            plan = Plan.model_validate_json(state["plan"])
        except (KeyError, ValidationError) as error:
            raise InvalidPlan("the state is none of MetaPruning's: it holds no plan; load the one it saved") from error
        if (plan.signature, plan.budget_ms) != (self._exact.signature, self._exact.budget_ms):
            raise InvalidPlan(
                f"the state is of {plan.model} at {plan.budget_ms:.4g} ms, this run of {self._exact.model} at "
                f"{self._exact.budget_ms:.4g} ms; construct the run with the plan that it was begun with"
            )
        self.model.load_state_dict(state["model"])
        self._step = int(state["step"])
        self.model.widths = self.drawn(self._step)
        self._use(plan)

    def _use(self, plan: Plan) -> None:
        self.plan = plan
        self.model.resting = dict(plan.widths)

    def _searched(self, result: SearchResult) -> Plan:
        """The plan of the widths found: same model, table and budget, its own channels, prediction and certificate."""
        exact, widths = self._exact, {group: result.widths[group] for group in self._exact.widths}
        prediction = self._predictor.predict(widths)
        objective = sum(self._importance.curve(group, [width])[0] for group, width in widths.items())
        bound = max(exact.certificate.bound, objective)
        notes = [
            f"widths found by evolutionary search, {result.evaluations} evaluations: validation accuracy "
            f"{result.accuracy:.2%}, of the exact plan {result.plan_accuracy:.2%}",
            *result.notes,
        ]
        if prediction.extrapolated:
            notes.append(
                f"extrapolated for {len(prediction.extrapolated)} layers, the first {prediction.extrapolated[0]!r}"
            )
        certificate = Certificate(
            status="searched",
            objective=objective,
            bound=bound,
            gap=(bound - objective) / max(abs(bound), 1e-30),
            seconds=result.seconds,
        )
        changed = {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "predicted_ms": prediction.latency_ms,
            "interval_ms": prediction.interval_ms,
            "importance": self._importance.retained(widths),
            "certificate": certificate.model_dump(),
            "widths": widths,
            "kept": {group: list(self._importance.kept(group, width)) for group, width in widths.items()},
            "notes": [*notes, *prediction.notes],
        }
        return Plan.model_validate(exact.model_dump() | changed)


def _require_latency_alone(plan: Plan) -> None:
    """The search knows one limit, the latency at the prediction."""
    asked = {
        "limits": plan.limits,
        "bounds": plan.bounds,
        "further tables": plan.further,
        "confidence": plan.confidence,
    }
    if kept := [what for what, value in asked.items() if value]:
        raise BadInput(
            f"this plan also keeps to {' and '.join(kept)}, which the search of MetaPruning doesn't know; plan within "
            "the latency alone, or apply this one by l1, slimming or resrep"
        )


def _width(size: int, ratio: float) -> int:
    return max(1, round(size * ratio))


def _options(
    network: Network, plan: Plan, ratios: Sequence[float], given: Mapping[str, Sequence[int]] | None
) -> dict[str, tuple[int, ...]]:
    """Widths to search among, per free group."""
    options = {}
    for group, size in network.dense.items():
        widths = {_width(size, ratio) for ratio in ratios}
        if given is not None and group in given:
            widths = {int(width) for width in given[group]}
        options[group] = tuple(sorted(widths | {plan.widths[group]}))
    for group, chosen in (given or {}).items():
        for width in chosen:
            network.require_widths({group: width})
    return options


@contextmanager
def _repeatable(loaders: Sequence[DataLoader[Any]], seed: int) -> Iterator[None]:
    """Loaders give the same batches each time, augmentation included; what they draw from is left as it was."""
    generators = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generators[id(generator)] = generator
    states = [(generator, generator.get_state()) for generator in generators.values()]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach into GPUs, too
            for generator in generators.values():
                generator.manual_seed(seed)
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _length(loader: Any) -> str:
    dataset = getattr(loader, "dataset", loader)
    return str(len(dataset)) if hasattr(dataset, "__len__") else "?"


def _digest(model: nn.Module) -> str:
    """Of all weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
