"""The races of speed.md, and what each should show."""

from __future__ import annotations

from typing import NamedTuple

MAML = "learn2learn, higher, TorchOpt"


CONV4 = "MAML, Conv4-64, 28x28, 5-way 1-shot 15-query"


class Target(NamedTuple):
    """What a race should show.

    against: whom, in words.
    least: ratio that is wanted.
    rival: which contender that is; None: the fastest library.
    why: what keeps us from it, where it is missed.
    """

    section: str
    work: str
    against: str
    least: float
    rival: str | None = None
    why: str = ""


MAPS = (
    "of some 70 ms of a task with one step, on one thread of the AMD, 41 are convolutions, at the "
    "machine's rate, and some 9 Python and its calls; the rest are passes over maps for norm, "
    "pooling and their gradients. The first layer a few pictures at a time, whose maps stay in the "
    "cache, took 0.96 of the time on one thread and 1.08 on two; each task compiled by itself took "
    "1.4 times as long. And within large convolutions other libraries profit from the second core "
    "as ours does"
)


TARGETS = [
    Target(
        "sinusoid",
        "sinusoid MAML, MLP 1-40-40-1, 25 tasks, 1 step: a meta-gradient",
        f"fastest of {MAML}",
        50,
        why="of 0.53 ms measured alone on the AMD, 0.21 are nineteen small products and 0.06 the "
        "checks that torch.compile still applies; the rest are element-wise kernels and the calls "
        "between them. The compiler's wrapper in C++ took 0.70 ms on two threads and 0.56 on one; "
        "with small products of the compiler's own, 0.82 where 0.70 was measured without",
    ),
    Target(
        "sinusoid",
        "the same against JAX",
        "JAX's jit(grad(vmap))",
        1.3,
        rival="JAX alone",
        why="JAX runs one compiled program; ours is many small kernels with calls between them",
    ),
    Target(
        "omniglot",
        f"Omniglot-shaped {CONV4}, 16 tasks, 1 step: a meta-gradient",
        f"fastest of {MAML}",
        2,
        why=MAPS,
    ),
    Target("omniglot-5", "the same with 5 inner steps", f"fastest of {MAML}", 2, why=MAPS),
    Target(
        "published",
        "the published Omniglot step, 32 tasks: a meta-gradient",
        f"fastest of {MAML}",
        5,
        why="of 75 ms measured alone on the Intel, 40 are products; 20 add up what comes back from "
        "overlapping patches, and the rest are norms and calls",
    ),
    Target(
        "sampling",
        "drawing 32 Omniglot episodes, 28x28, rotations",
        "learn2learn's tasksets",
        100,
        rival="learn2learn, image files",
    ),
    Target(
        "training",
        "Omniglot training, draw and step",
        "learn2learn's example loop",
        3,
        rival="learn2learn, image files",
    ),
    Target(
        "accuracy-omniglot",
        "training to 0.95 on Omniglot with a small budget",
        "its loop with the same recipe",
        4,
        rival="learn2learn",
        why="a step takes 58 ms by workers where learn2learn's takes 71: four tasks of twenty "
        "pictures under 32 filters, where products and convolutions would take 8 ms at the "
        "machine's best rate, and some 800 small operations a task take the rest. And rounding "
        "alone decides which validation of 200 episodes first shows 0.95: from the same weights "
        "and episodes it was that of step 12,500 for ours and of 9,500 for learn2learn. On the "
        "Intel a step takes 38 ms by processes, and the validation after the last of 17,000 steps "
        "shows 0.946, so that there is no time to 0.95",
    ),
    Target(
        "gpu",
        "Omniglot-shaped MAML, 32 tasks, on a GPU: a meta-gradient",
        "learn2learn on the same GPU",
        10,
        rival="learn2learn",
    ),
    Target(
        "centroid",
        "`nearest-centroid`, Conv4-64, 32 tasks: a meta-gradient",
        "fastest of learn2learn, easyfsl",
        2,
        why="of 115 ms a task on one thread of the Intel, 40 are convolutions and products, and 57 "
        "passes over maps for norm, pooling and their gradients",
    ),
    Target(
        "features",
        "`nearest-centroid` on cached features: judging 500 episodes",
        "easyfsl's evaluate",
        20,
        rival="easyfsl",
        why="easyfsl takes 2.0 ms an episode there, and to gather the 512 KB of an episode takes "
        "0.1: twenty times as fast is no longer than the gathering",
    ),
]


RACES = {
    "sinusoid": "Sinusoid MAML",
    "omniglot": "Omniglot-shaped MAML, 1 step",
    "omniglot-5": "Omniglot-shaped MAML, 5 steps",
    "published": "The published Omniglot step",
    "centroid": "Nearest centroid",
    "features": "Judging episodes of cached features",
    "gpu": "Omniglot-shaped MAML on a GPU",
    "gpu-published": "The published Omniglot step on a GPU",
    "gpu-sinusoid": "Sinusoid MAML on a GPU",
    "sampling": "Drawing episodes",
    "training": "Training on Omniglot",
}


ACCURACIES = {
    "accuracy-glyphs": "Time to an accuracy of 0.90 on glyphs",
    "accuracy-omniglot": "Time to an accuracy of 0.95 on Omniglot",
}
