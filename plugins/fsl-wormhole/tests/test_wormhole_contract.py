"""The conformance kit over variants of the adapter."""

from typing import ClassVar

from fsl_core.testing import AdapterContract
from fsl_wormhole import Wormhole


class WormholeContract(AdapterContract):
    kinds = ("classification", "regression")
    options: ClassVar = {}

    def make(self, task, backbone):
        return Wormhole(task, backbone, **{"inner_steps": 2} | self.options)

    def permute_classes(self, adapter, permutation):
        learned = dict(zip(adapter.multipliers.shapes, adapter.multipliers.learned, strict=False))
        per_class = [f for name, f in learned.items() if name in ("output", "head") and f.dim()]
        for rows in (*adapter.head.parameters(), *per_class):
            rows[permutation] = rows.clone()


class TestWormhole(WormholeContract):
    pass


class TestFirstOrder(WormholeContract):
    options: ClassVar = {"order": 1, "learn_multiplier_lr": True}


class TestAllLearned(WormholeContract):
    options: ClassVar = {
        "multipliers": "per-output",
        "learn_initial": True,
        "learn_multiplier_lr": True,
        "multiplier_lr": 0.3,
    }


class TestFromZero(WormholeContract):
    options: ClassVar = {"initial": 0.0, "inner_lr": 0.3}


class TestFactorsAlone(WormholeContract):
    options: ClassVar = {"adapt_weights": False, "multiplier_lr": 0.5, "multipliers": "per-output"}


class TestLayers(WormholeContract):
    options: ClassVar = {"multiplies": "layers", "learn_initial": True, "multiplier_lr": 0.05}


class TestUnits(WormholeContract):
    options: ClassVar = {
        "multiplies": "layers",
        "multipliers": "per-output",
        "learn_initial": True,
        "learn_multiplier_lr": True,
    }


class TestAllWeights(WormholeContract):
    options: ClassVar = {"multiplies": "all", "initial": 0.8, "learn_multiplier_lr": True}


class TestMaml(WormholeContract):
    options: ClassVar = {"multiplier_lr": 0.0}
