"""The adapter `hypernet`: one forward pass maps the support set to weights.

They are those of a head, and by option of the backbone too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypernet.checkpointing import Checkpointed, check_recomputable
from fsl_hypernet.encoder import EncodedSupport, SupportEncoder, encode_labels
from fsl_hypernet.heads import Base, Kernel, KernelHead, LinearHead
from fsl_hypernet.modulation import Film, LowRank, Modulate, Weights

Head = Literal["class", "task", "kernel"]
SupportRows = Literal["class-means", "items"]


@fsl.validated
class Hypernet(fsl.Adapter):
    """head = H(encode(backbone(support))), with no inner step.

    encode:   a deep set, see `SupportEncoder`.
    H:        generates a linear head (`LinearHead`) or, from the support kernel, a small network
              (`KernelHead`).
    modulate: by option, the backbone's weights are changed first: scales and shifts (`Film`) or
              low-rank updates (`LowRank`) are generated from the embedding of the plain features.
              The head is then generated from the features of the changed backbone.

    Sources: HyperShot, Sendera et al. 2023, arXiv:2203.11378 (`head: kernel`, which with
    `support_loss` trains on what its code trains on; see `KernelHead` for what differs). Prototypes
    that a network corrects: Snell et al. 2017, arXiv:1703.05175, for the prototypes; encoder,
    correction and their sizes are this project's design.
    """

    name = "hypernet"
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        head: Annotated[
            Head,
            Field(
                description="class: each class's row from its own support embedding and that of "
                "the task, one network for all, for any number of ways. task: the whole head from "
                "an embedding that knows the labels; for regression too. kernel: a small network "
                "from the kernel matrix of the class means (HyperShot)"
            ),
        ] = "class",
        base: Annotated[
            Base | None,
            Field(
                description="what a generated linear head is added to: prototype (nearest class "
                "mean), or none. null: prototype, but none for regression and head: kernel, which "
                "have no other"
            ),
        ] = None,
        modulate: Annotated[
            Modulate,
            Field(
                description="generated changes of the backbone: film (scale and shift of the "
                "channels of each norm layer, or of each convolution and linear layer if there is "
                "no norm), low-rank (updates of the weights of convolutions and linear layers), or "
                "none. Layers that the outer loop does not train are changed too"
            ),
        ] = "none",
        rank: Annotated[int, Field(gt=0, description="of the low-rank updates")] = 1,
        embedding: Annotated[
            int, Field(gt=0, description="length of the embeddings of a class and of the task")
        ] = 64,
        hidden: Annotated[
            int, Field(gt=0, description="width of the hidden layer of encoder and hypernetwork")
        ] = 128,
        target: Annotated[
            int, Field(gt=0, description="width of the network that head: kernel generates")
        ] = 64,
        kernel: Annotated[
            Kernel,
            Field(description="of head: kernel: cosine-distance, 1 - cos (HyperShot's), or cosine"),
        ] = "cosine-distance",
        support_loss: Annotated[
            bool,
            Field(
                description="train on support and query rows together, as HyperShot's code; "
                "else on the queries"
            ),
        ] = False,
        support_rows: Annotated[
            SupportRows | None,
            Field(
                description="what support_loss counts of the support set: class-means, one row for "
                "each class, or items. null: class-means for head: kernel, as in HyperShot's code, "
                "and items for the others"
            ),
        ] = None,
        checkpoint: Annotated[
            bool,
            Field(
                description="gradient checkpointing of the backbone's blocks: less memory, more "
                "time"
            ),
        ] = False,
    ):
        super().__init__()
        if support_rows == "class-means" and task.kind != "classification":
            raise ValueError(
                f"support_rows: 'class-means' of a {task.kind} task, which has no classes. "
                "null or 'items'"
            )
        if checkpoint:
            check_recomputable(backbone)
        self.task, self.support_loss, self.checkpoint = task, support_loss, checkpoint
        self.support_rows = support_rows or ("class-means" if head == "kernel" else "items")
        base = _base_of(head, base, task)
        labels = task.output_dim if head == "task" else 0
        encoded = head != "kernel" or modulate != "none"
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.encoder = SupportEncoder(feature_dim, labels, embedding, hidden) if encoded else None
        sizes = (feature_dim, task.output_dim)
        self.head = (
            KernelHead(task.n_way, target, hidden, kernel)
            if head == "kernel"
            else LinearHead(head, base, sizes, embedding, hidden)
        )
        self.modulation = _modulation(modulate, backbone, embedding, rank)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        return self._fitted(backbone, support)[0]

    def _fitted(
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> tuple[fsl.Predictor, fsl.Predictor, EncodedSupport]:
        """The predictor, its head, which takes features, and what the head was generated from."""
        net = _network(backbone, self.checkpoint and torch.is_grad_enabled())
        weights: Weights = dict(backbone.named_parameters())
        encoded = encode_labels(net(weights, support.x), support.y, self.task)
        if self.modulation is not None:
            assert self.encoder is not None  # it is there with every modulation
            _, embedding = self.encoder(encoded)
            weights |= self.modulation(embedding, weights)
            encoded = encoded._replace(features=net(weights, support.x))
        head = self.head(encoded, self.encoder)
        return lambda x: head(net(weights, x)), head, encoded

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """The query loss; with `support_loss`, over rows of the support set as well."""
        if not self.support_loss:
            return super().objective(backbone, episode, loss)
        predict, head, encoded = self._fitted(backbone, episode.support)
        prediction = predict(episode.query.x)
        rows, labels = encoded.features, episode.support.y
        if self.support_rows == "class-means":
            rows, labels = encoded.means, torch.arange(self.task.n_way, device=labels.device)
        value = loss(torch.cat([head(rows), prediction]), torch.cat([labels, episode.query.y]))
        return value, prediction


def _network(backbone: nn.Module, checkpoint: bool) -> Callable[[Weights, Tensor], Tensor]:
    """The backbone as a function of its weights by name; no call changes it."""
    if not checkpoint:
        return partial(fsl.call_with, backbone)
    module = Checkpointed(backbone)

    def call(weights: Weights, x: Tensor) -> Tensor:
        own = {f"backbone.{name}": weight for name, weight in weights.items()}
        return fsl.call_with(module, own, x, keep=True)  # the blocks drop their activations

    return call


def _modulation(
    modulate: Modulate, backbone: nn.Module, embedding: int, rank: int
) -> Film | LowRank | None:
    if modulate == "film":
        return Film(backbone, embedding)
    return LowRank(backbone, embedding, rank) if modulate == "low-rank" else None


def _base_of(head: Head, base: Base | None, task: fsl.TaskShape) -> Base:
    if task.kind == "regression" and head != "task":
        raise ValueError(
            f"head: {head!r} for a regression task, which has no classes. 'task', whose embedding "
            "sees the values"
        )
    possible = head != "kernel" and task.kind == "classification"
    if base == "prototype" and not possible:
        found = f"head: {head!r}" if head == "kernel" else "a regression task"
        raise ValueError(
            f"base: 'prototype' for {found}, which has no class means to start from. null or 'none'"
        )
    return base or ("prototype" if possible else "none")
