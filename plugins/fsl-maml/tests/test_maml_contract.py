"""The conformance kit over variants of the adapter."""

from fsl_core.testing import AdapterContract
from fsl_maml import Maml


class MamlContract(AdapterContract):
    kinds = ("classification", "regression")

    def permute_classes(self, adapter, permutation):
        for rows in adapter.head.parameters():
            rows[permutation] = rows.clone()


class TestMaml(MamlContract):
    def make(self, task, backbone):
        return Maml(task, backbone, inner_steps=2)


class TestFirstOrder(MamlContract):
    def make(self, task, backbone):
        return Maml(task, backbone, inner_steps=2, order=1)


class TestAnil(MamlContract):
    def make(self, task, backbone):
        return Maml(task, backbone, inner_steps=2, adapted="head", clip_inner_grad=0.1)


class TestMetaSgd(MamlContract):
    def make(self, task, backbone):
        return Maml(task, backbone, inner_steps=1, learn_inner_lr="elementwise")

    def permute_classes(self, adapter, permutation):
        super().permute_classes(adapter, permutation)
        rates = dict(zip(adapter.fast_names, adapter.inner_lr.rates, strict=True))
        for rows in (rates["head.weight"], rates["head.bias"]):
            rows[permutation] = rows.clone()


class TestMamlPlusPlus(MamlContract):
    def make(self, task, backbone):
        return Maml(
            task,
            backbone,
            inner_steps=2,
            learn_inner_lr="per-parameter-and-step",
            multi_step_loss=0.5,
        )


class TestNormsOfEachStep(MamlContract):
    without_gradient = ("backbone.*norm*", "backbone.*.scale", "backbone.*.shift")

    def make(self, task, backbone):
        return Maml(task, backbone, inner_steps=2, adapt_norms=False, norms_per_step=True)


class TestAdam(MamlContract):
    def make(self, task, backbone):
        options = {
            "inner_optimizer": "adam",
            "inner_lr": 0.01,
            "inner_optimizer_options": {"eps": 0.001},
        }
        return Maml(task, backbone, inner_steps=2, adapted=[["head"], ["all"]], **options)
