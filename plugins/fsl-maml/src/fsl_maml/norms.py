"""Scale and shift of norm layers: which weights they are, and one of each for every inner step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # of BatchNorm and InstanceNorm

import fsl_core as fsl

NORMS = (fsl.Norm, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def norm_names(backbone: nn.Module) -> Iterator[str]:
    """Names of the scales and shifts of a backbone's norm layers.

    Such as `backbone.blocks.0.norm.scale`.
    """
    for prefix, module in backbone.named_modules(prefix="backbone"):
        if isinstance(module, NORMS):
            yield from (f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False))


class StepNorms(nn.Module):
    """Scale and shift of every norm layer, one for each inner step.

    All of them begin as they are in `weights`.

    The support set of step k, and the queries after it, are seen with those of step k; later steps
    use the last. Those in the backbone then take no part.

    Source: per-step batch normalisation of MAML++, Antoniou et al. 2019, arXiv:1810.09502, by its
    code. Running averages for each step, which that code keeps beside them, are left out: it never
    normalises with them.
    """

    def __init__(self, weights: Mapping[str, Tensor], steps: int):
        super().__init__()
        self.names = list(weights)
        self.values = nn.ParameterList(
            weight.detach().expand(max(steps, 1), *weight.shape).clone()
            for weight in weights.values()
        )

    def learned(self) -> dict[str, Tensor]:
        """The meta-parameters, by their names in the adapter."""
        return {f"step_norms.{name}": values for name, values in self.named_parameters()}

    def at(self, step: int, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scales and shifts of this step by name.

        learned: what `learned` returned, or other values by those names.
        """
        values = [learned[f"step_norms.values.{i}"] for i in range(len(self.names))]
        rows = (each[min(max(step, 0), len(each) - 1)] for each in values)
        return dict(zip(self.names, rows, strict=True))
