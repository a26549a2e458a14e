"""The conformance kit over variants of the adapter and phases of its warm-up."""

from typing import ClassVar

import pytest

from fsl_core.testing import AdapterContract
from fsl_hypermaml import HyperMaml
from fsl_hypermaml.hypernetwork import Flat


class HyperMamlContract(AdapterContract):
    """An adapter with `options`, told `progress`: 0 gradient steps alone, 0.3 a mixture, 1 the
    hypernetwork alone."""

    options: ClassVar[dict] = {}
    progress: ClassVar[float] = 1.0

    def make(self, task, backbone):
        adapter = HyperMaml(
            task, backbone, **{"hidden_size": 8, "warmup": 0.2, "switch": 0.2} | self.options
        )
        adapter.on_progress(self.progress)
        return adapter

    def permute_classes(self, adapter, permutation):
        """Rows of heads, and of the hypernetwork what its first layer reads and its last layer says
        of each class."""
        n_way, features = adapter.task.n_way, adapter.head.in_features
        flat = isinstance(adapter.hypernetwork, Flat)
        of_classes = [buffer for buffer in adapter.buffers() if buffer.dim()]
        for rows in (*adapter.head.parameters(), *of_classes):
            rows[permutation] = rows.clone()
        for net in adapter.hypernetwork.children():
            read = net[0].weight.unflatten(
                1, (n_way if flat else 1, -1)
            )  # (hidden_size, classes or 1, width)
            if adapter.enhance:
                for start in range(
                    features, read.shape[2] - n_way + 1, n_way
                ):  # predictions, then one-hot labels
                    part = read[:, :, start : start + n_way]
                    part[:, :, permutation] = part.clone()
            if flat:
                read[:, permutation] = read.clone()
                for said in (values.unflatten(0, (n_way, -1)) for values in net[-1].parameters()):
                    said[permutation] = said.clone()


class TestHyperMaml(HyperMamlContract):
    pass


class TestExactGradient(HyperMamlContract):
    options: ClassVar[dict] = {"detached": "none", "support_loss": True, "update_penalty": 0.1}


class TestWarmUp(HyperMamlContract):
    options: ClassVar[dict] = {"inner_steps": 2, "enhance": False}
    progress = 0.0
    without_gradient = ("adapter.hypernetwork.*",)


class TestSwitch(HyperMamlContract):
    options: ClassVar[dict] = {
        "inner_steps": 2,
        "detached": "none",
        "inner_lr": 0.3,
        "support_loss": True,
    }
    progress = 0.3


class TestSwitchOfFirstOrder(HyperMamlContract):
    options: ClassVar[dict] = {"inner_steps": 2, "order": 1}
    progress = 0.3


class TestOfficial(HyperMamlContract):
    """The quirks of the official code that leave tasks independent; class indices break label
    equivariance."""

    options: ClassVar[dict] = {
        "labels": "index",
        "gradient_target": "universal",
        "repeat_delta": "each-step",
        "inner_steps": 2,
        "detached": "none",
    }
    progress = 0.3
    label_equivariant = False

    def test_class_indices_break_label_equivariance(self):
        claim = type("Claim", (type(self),), {"label_equivariant": True})()
        with pytest.raises(
            AssertionError,
            match="label equivariance: relabelling the classes does not just permute the logits",
        ):
            claim.test_label_equivariance()


class TestStalePredictions(HyperMamlContract):
    options: ClassVar[dict] = {"predictions": "stale"}

    def test_it_claims_one_task_after_another(self):
        adapter = self._learner(("classification", "none")).adapter
        assert not adapter.vectorizable
        assert not adapter.threadable


class TestFlat(HyperMamlContract):
    options: ClassVar[dict] = {"network": "flat", "detached": "none", "operator": "plus"}


class TestFlatOfEmbeddingsAlone(HyperMamlContract):
    options: ClassVar[dict] = {"network": "flat", "enhance": False}


class TestMultiply(HyperMamlContract):
    options: ClassVar[dict] = {"operator": "multiply", "detached": "none", "layers": 2}
    progress = 0.3


class TestEmbeddingsAlone(HyperMamlContract):
    options: ClassVar[dict] = {"enhance": False}


class TestDetachedInput(HyperMamlContract):
    options: ClassVar[dict] = {"detached": "input"}
