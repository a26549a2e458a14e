"""Inner loops in closed form for fsl-core.

Kernel regression in function space, ridge regression, Meta-RKHS I and II.
"""

import fsl_core as fsl
from fsl_kernel_closed_form.closed_form import KernelClosedForm
from fsl_kernel_closed_form.exponential import finite_time
from fsl_kernel_closed_form.meta_rkhs_i import MetaRkhsI
from fsl_kernel_closed_form.meta_rkhs_ii import MetaRkhsII
from fsl_kernel_closed_form.ridge import Ridge
from fsl_kernel_closed_form.solver import JitterWarning, solve

__all__ = [
    "JitterWarning",
    "KernelClosedForm",
    "MetaRkhsI",
    "MetaRkhsII",
    "Ridge",
    "finite_time",
    "fsl_register_adapters",
    "solve",
]


@fsl.hookimpl
def fsl_register_adapters(register):
    for adapter in (KernelClosedForm, Ridge, MetaRkhsI, MetaRkhsII):
        register(adapter)
