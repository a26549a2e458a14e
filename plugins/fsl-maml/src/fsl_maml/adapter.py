"""The adapter `maml`: a few steps on the support set, differentiated by the outer loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_maml.heads import HeadInit, linear_head
from fsl_maml.losses import CENTRE, QUERY, SUPPORT, Aggregate, Features, InnerLoss, LossKind
from fsl_maml.norms import StepNorms, norm_names
from fsl_maml.optimizers import (
    InnerOptimizer,
    OptimizerName,
    PlainSgd,
    check_optimizer,
    uses_functional,
)
from fsl_maml.patterns import Adapted, pattern_schedule, refuse_untrained
from fsl_maml.rates import InnerRates, RateKind
from fsl_maml.steps import Steps

Weights = dict[str, Tensor]
"""By name, such as `backbone.blocks.0.weight`, `head.bias` and `inner_lr.rate`."""

LONG_WAY = 1.0
"""Steps times rate above which a recipe is told of `inner_lr_rule`."""

SMALLEST_SHARE = 0.03
"""Of 1 / n: what the multi-step loss leaves to the steps before the last one (MAML++ code)."""


@fsl.validated
class Maml(fsl.Adapter):
    """Gradient steps on the support loss, for each task from the same weights.

        theta_i <- theta_i - inner_lr * grad l(theta_i)

    l: the support loss, with penalties by option (see `InnerLoss`).

    inner_steps times, from theta_i = theta = (backbone, head). The head is linear,
    (n, feature_dim) -> (n, output_dim). In training mode `inner_steps` steps are made, in
    evaluation mode `test_steps`; there the predictor carries no graph. The caller's backbone is
    only read. Weights that require no gradient when the adapter is built are frozen: no step moves
    them.

    Sources: MAML and its first-order form, Finn et al. 2017, arXiv:1703.03400. ANIL (`adapted:
    head`), Raghu et al. 2020, arXiv:1909.09157. BOIL (`adapted: body`), Oh et al. 2021,
    arXiv:2008.08882. Steps that adapt different layers, and fewer of them in evaluation: after the
    abstract of Khabarlak 2022, arXiv:2206.05930, whose text was not available. Learned rates: see
    `InnerRates`. MAML++, Antoniou et al. 2019, arXiv:1810.09502: multi-step loss, norms that are
    not adapted (`adapt_norms: false`) or have a scale and shift for each step (`norms_per_step`,
    see `StepNorms`). Differs from it: the loss is annealed at every outer step, not every epoch; no
    annealing of the derivative's order; the test ensembles no checkpoints. MAML's own code adapts
    no norm either, and its support loss is n_way times the mean that is taken here: a rate there
    acts as n_way times that rate here; `inner_loss: sum-per-shot` takes theirs.

    `aggregate`: step t = 1, 2, .. follows (1 - alpha / t) grad l + (alpha / t) grad L, with the
    query loss L. It uses the labels of the queries, which only training has: evaluation takes plain
    steps, so training and evaluation differ. Source: BDA, Liu et al. 2020, arXiv:2006.04045, by
    the code dut-media-lab/BOML.

    `inner_lr_rule: per-step`: a rate in inverse proportion to the number of steps, after the
    abstract of Ji, Yang and Liang 2022, arXiv:2002.07836; what it is proportional to is `inner_lr`.

    `proximal`: the penalty of iMAML, Rajeswaran et al. 2019, arXiv:1909.04630. `proximal_steps:
    last`, after that paper's code aravindr93/imaml_dev: the steps follow the support loss alone and
    one plain step on the penalty comes after the last of them.
    """

    name = "maml"
    unequal_shots = True
    loss_shares: Tensor  # with `multi_step_loss`: what the query loss after each step counts

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_lr: Annotated[
            float, Field(gt=0, description="inner learning rate, or where learned ones start")
        ] = 0.1,
        inner_steps: Annotated[int, Field(ge=0, description="inner steps in training")] = 5,
        test_steps: Annotated[
            int | None, Field(ge=0, description="inner steps in evaluation; as in training if null")
        ] = None,
        order: Annotated[
            Literal[1, 2],
            Field(
                description="2: exact meta-gradient. 1: without second derivatives (FOMAML), "
                "which is faster"
            ),
        ] = 2,
        adapted: Annotated[
            Adapted,
            Field(
                description="what the inner loop adapts: all, head (ANIL), body (BOIL), or shell "
                "patterns over parameter names. A list of lists gives each step its own; later "
                "steps use the last"
            ),
        ] = "all",
        adapt_frozen: Annotated[
            bool, Field(description="whether steps also move weights that require no gradient")
        ] = False,
        learn_inner_lr: Annotated[
            RateKind,
            Field(
                description="fixed; or rates trained by the outer loop: scalar, per-parameter "
                "(tensor), per-parameter-and-step (LSLR of MAML++), elementwise (Meta-SGD)"
            ),
        ] = "fixed",
        inner_optimizer: Annotated[
            OptimizerName,
            Field(
                description="optimizer of the inner loop; anything but sgd without options needs "
                "the package higher"
            ),
        ] = "sgd",
        inner_optimizer_options: Annotated[
            dict[str, Any] | None,
            Field(
                description="its further options by their torch.optim names, such as momentum: 0.9"
            ),
        ] = None,
        engine: Annotated[
            Literal["auto", "functional", "higher"],
            Field(
                description="functional: plain SGD steps by torch.func, which a meta-batch can "
                "share; higher: any optimizer, one task at a time; auto: functional for sgd "
                "without options"
            ),
        ] = "auto",
        clip_inner_grad: Annotated[
            float | None,
            Field(
                gt=0, description="greatest Euclidean norm of the inner gradient; null: not clipped"
            ),
        ] = None,
        multi_step_loss: Annotated[
            float | None,
            Field(
                gt=0,
                le=1,
                description="share of training in which the query loss counts after every step "
                "(MSL of MAML++)",
            ),
        ] = None,
        adapt_norms: Annotated[
            bool,
            Field(
                description="whether `adapted` may name scales and shifts of norm layers; "
                "false: as MAML's code and MAML++"
            ),
        ] = True,
        norms_per_step: Annotated[
            bool,
            Field(
                description="each inner step has scales and shifts of its own, trained by the "
                "outer loop (MAML++); needs adapt_norms: false"
            ),
        ] = False,
        head_start: Annotated[
            Literal["learned", "zero"],
            Field(description="where the head starts for each task; zero: it is not trained"),
        ] = "learned",
        inner_loss: Annotated[
            LossKind,
            Field(
                description="mean over the support items; or their sum divided by n_shot, as "
                "MAML's code: n_way times the mean"
            ),
        ] = "mean",
        weight_decay: Annotated[
            float, Field(ge=0, description="of weight_decay / 2 ||head||^2 in the inner loss")
        ] = 0.0,
        proximal: Annotated[
            float,
            Field(ge=0, description="of proximal / 2 ||phi - theta||^2 in the inner loss (iMAML)"),
        ] = 0.0,
        proximal_steps: Annotated[
            Literal["joint", "last"],
            Field(
                description="joint: every step follows the penalty too; last: one step on it "
                "alone after the others (iMAML's code)"
            ),
        ] = "joint",
        test_proximal: Annotated[
            float | None, Field(ge=0, description="proximal in evaluation; as in training if null")
        ] = None,
        aggregate: Annotated[
            float | None,
            Field(
                ge=0,
                le=1,
                description="alpha of BDA: share of the query loss in the first inner step, "
                "alpha / t in step t; in training alone",
            ),
        ] = None,
        learn_aggregate: Annotated[
            bool, Field(description="whether the outer loop trains alpha, by its logit")
        ] = False,
        head_init: HeadInit = "default",
        inner_lr_rule: Annotated[
            Literal["none", "per-step"],
            Field(
                description="per-step: inner_lr is divided by inner_steps, those of training, in "
                "evaluation too"
            ),
        ] = "none",
        query: Annotated[
            Literal["query", "support"],
            Field(
                description="the set whose loss the outer loop follows; support: that of the inner "
                "steps, for comparison"
            ),
        ] = "query",
        test_adapted: Annotated[
            Adapted | None,
            Field(
                description="what the inner loop adapts in evaluation, in the form of `adapted`, "
                "of which it is a part; as in training if null. `fsl patterns` finds one"
            ),
        ] = None,
    ):
        super().__init__()
        if inner_lr_rule == "per-step":
            inner_lr = inner_lr / max(inner_steps, 1)
        test_steps = inner_steps if test_steps is None else test_steps
        options = inner_optimizer_options or {}
        _check_aggregate(aggregate, learn_aggregate, proximal, multi_step_loss)
        if query == "support" and multi_step_loss:
            raise ValueError(
                f"query: support with multi_step_loss: {multi_step_loss}, which is of the query "
                "loss. One of the two"
            )
        if norms_per_step and adapt_norms:
            raise ValueError(
                "norms_per_step: true with adapt_norms: true, which would move what belongs to one "
                "step. adapt_norms: false"
            )
        check_optimizer(inner_optimizer, options, learned_rate=learn_inner_lr != "fixed")

        self.task, self.order = task, order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.inner_lr_rule, self.query = inner_lr_rule, query
        self.clip_inner_grad, self.multi_step_loss = clip_inner_grad, multi_step_loss
        self.inner_loss, self.weight_decay = inner_loss, weight_decay
        self.proximal, self.proximal_steps = proximal, proximal_steps
        self.test_proximal = proximal if test_proximal is None else test_proximal
        self.aggregate = Aggregate(aggregate, learn_aggregate) if aggregate else None
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = linear_head(feature_dim, task.output_dim, head_init)
        net, norms = fsl.Functional(backbone, self.head), list(norm_names(backbone))
        weights, left_out = net.weights, () if adapt_norms else norms
        self.schedule = [
            net.adapted(patterns, frozen=adapt_frozen, without=left_out)
            for patterns in pattern_schedule(adapted, max(inner_steps, test_steps))
        ]
        self.fast_names = [
            name for name in weights if any(name in names for names in self.schedule)
        ]
        self.test_schedule = self.schedule
        if test_adapted is not None:
            self.test_schedule = [
                net.adapted(patterns, frozen=adapt_frozen, without=left_out, option="test_adapted")
                for patterns in pattern_schedule(test_adapted, test_steps, "test_adapted")
            ]
            refuse_untrained(self.test_schedule, self.fast_names)
        self.inner_lr = InnerRates(
            learn_inner_lr, inner_lr, [weights[name] for name in self.fast_names], inner_steps
        )
        self.step_norms = (
            StepNorms({name: weights[name] for name in norms}, inner_steps)
            if norms_per_step
            else None
        )
        groups = 1 if self.inner_lr.one_for_all else len(self.fast_names)
        self.vectorizable = uses_functional(engine, inner_optimizer, options, backbone)
        self.optimizer = (
            PlainSgd(inner_lr)
            if self.vectorizable
            else InnerOptimizer(inner_optimizer, inner_lr, options, len(self.fast_names), groups)
        )
        if multi_step_loss is not None:
            # A tensor: a compiler would take numbers that move with training for constants.
            self.register_buffer("loss_shares", torch.ones(inner_steps), persistent=False)
        Maml.on_progress(self, 0.0)  # not that of a class derived from it, which is unfinished
        if head_start == "zero":
            _start_at_zero(self.head, self.fast_names)

    def inner_problem(
        self,
        backbone: nn.Module,
        support: fsl.LabelledSet,
        query: fsl.LabelledSet | None = None,
    ) -> fsl.InnerProblem:
        net = fsl.Functional(backbone, self.head)
        start = {name: net.weights[name] for name in self.fast_names}
        outer = {name: w for name, w in net.weights.items() if name not in start}
        outer |= self.inner_lr.learned() | self._step_norms()
        proximal = self.proximal if self.training else self.test_proximal
        steps = self.inner_steps if self.training else self.test_steps
        if proximal:
            outer |= {CENTRE + name: weight for name, weight in start.items()}
        episode, aggregate = {SUPPORT: support}, self.aggregate if self.training else None
        if aggregate and query is not None:
            episode[QUERY], outer = query, outer | aggregate.learned()

        def at(outer: Weights, k: int) -> Weights:
            """What the loss of step k sees: norms, the centre or none, and a share."""
            outer = self._norms_of(outer, k)
            if proximal and self.proximal_steps == "last":
                outer = {n: weight for n, weight in outer.items() if not n.startswith(CENTRE)}
            return outer | aggregate.at(k, outer) if aggregate and QUERY in episode else outer

        return fsl.InnerProblem(
            start=start,
            outer=outer | at(outer, steps - 1),
            steps=steps,
            loss=InnerLoss(self.task, net, episode, self.inner_loss, self.weight_decay, proximal),
            step=self._steps(steps, proximal),
            predict=lambda phi, outer, x: net(outer | phi, x),
            schedule=self.schedule if self.training else self.test_schedule,
            at=at,
            share=Features(net, {name: items.x for name, items in episode.items()}),
            by_autograd=not self.vectorizable,
            proximal=proximal,
            curvature=0.0 if QUERY in episode else self._curvature(proximal),
        )

    def adapt(
        self,
        backbone: nn.Module,
        support: fsl.LabelledSet,
        query: fsl.LabelledSet | None = None,
    ) -> fsl.Predictor:
        problem = self.inner_problem(backbone, support, query)
        return deque(self.predictors(problem), maxlen=1).pop()

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """The query loss after the last step, or a mean over all steps.

        The mean: with `multi_step_loss`, for as long as it lasts. With `query: support`, in
        training the support loss instead.
        """
        if self.query == "support" and self.training:
            predict = fsl.call_declared(self.adapt, backbone, episode, episode.query)
            value = loss(predict(episode.support.x), episode.support.y)
            with torch.no_grad():
                return value, predict(episode.query.x)
        if not (self.all_steps_count and self.training):
            return super().objective(backbone, episode, loss)
        predictions = [
            predict(episode.query.x) for predict in self.trajectory(backbone, episode.support)[1:]
        ]
        losses = torch.stack([loss(prediction, episode.query.y) for prediction in predictions])
        return losses @ self.loss_shares.to(losses), predictions[-1]

    def unrolled_only(self) -> str:
        if self.multi_step_loss is not None:
            return "multi_step_loss follows the query loss after every step"
        if self.query == "support":
            return "query: support follows the support loss"
        return ""

    def advice(self) -> str:
        rate, steps = self.inner_lr.initial, self.inner_steps
        if self.inner_lr_rule == "per-step" or steps < 2 or rate * steps <= LONG_WAY:
            return ""
        return (
            f"{steps} inner steps of rate {rate:g}. A meta-gradient may grow with "
            f"(1 + rate * curvature)^(2 steps); inner_lr_rule: per-step divides the rate by {steps}"
        )

    def on_progress(self, progress: float) -> None:
        """Settle what the query loss after each step counts, while others than the last one do."""
        steps, until = self.inner_steps, self.multi_step_loss
        self.all_steps_count = until is not None and steps > 1 and progress < until
        if until is not None and self.all_steps_count:
            early = max(1 - progress / until, SMALLEST_SHARE) / steps
            shares = [early] * (steps - 1) + [1 - early * (steps - 1)]
            self.loss_shares.copy_(self.loss_shares.new_tensor(shares))

    def _steps(self, steps: int, proximal: float) -> Steps:
        last = steps - 1 if self.proximal_steps == "last" else None
        return Steps(
            self.fast_names,
            self.optimizer,
            self.inner_lr,
            self.clip_inner_grad,
            proximal=0.0 if last is None else proximal,
            last=last,
        )

    def _curvature(self, proximal: float) -> float:
        feature_based = all(name.startswith("head.") for name in self.fast_names)
        return proximal + (self.weight_decay if feature_based else 0.0)

    def _step_norms(self) -> Weights:
        return {} if self.step_norms is None else self.step_norms.learned()

    def _norms_of(self, outer: Weights, step: int) -> Weights:
        """With the scales and shifts that belong to one step, unless all steps share them."""
        return outer if self.step_norms is None else outer | self.step_norms.at(step, outer)


def _check_aggregate(
    alpha: float | None, learned: bool, proximal: float, multi_step_loss: float | None
) -> None:
    """Raise ValueError for what the aggregated step cannot be combined with."""
    if learned and (alpha is None or not 0 < alpha < 1):
        raise ValueError(
            f"learn_aggregate: true with aggregate: {alpha}, whose logit is not finite. "
            "aggregate: a number between 0 and 1, such as 0.5"
        )
    others = {"proximal": proximal, "multi_step_loss": multi_step_loss}
    if alpha and (found := [name for name, value in others.items() if value]):
        raise ValueError(f"aggregate: {alpha} with {found[0]}. One of the two")


def _start_at_zero(head: nn.Module, fast_names: Iterable[str]) -> None:
    """Zeros that no outer step moves. ValueError if inner steps leave part of the head there."""
    left = [name for name, _ in head.named_parameters() if f"head.{name}" not in fast_names]
    if left:
        raise ValueError(
            f"head_start: zero with an `adapted` that leaves out head.{left[0]}, which would stay "
            "zero. adapted: head or all"
        )
    for parameter in head.parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
