"""Which published package offers which name, so that a recipe can be told what to install."""

PACKAGES: dict[str, dict[str, str]] = {
    "adapter": {
        "maml": "fsl-maml",
        "hypermaml": "fsl-hypermaml",
        "hypernet": "fsl-hypernet",
        "wormhole": "fsl-wormhole",
        "kernel-closed-form": "fsl-kernel-closed-form",
        "ridge": "fsl-kernel-closed-form",
        "meta-rkhs-i": "fsl-kernel-closed-form",
        "meta-rkhs-ii": "fsl-kernel-closed-form",
    },
    "weighting": {
        "gradient-similarity": "fsl-weighted-outer-loss",
        "softmax-loss": "fsl-weighted-outer-loss",
        "focal": "fsl-weighted-outer-loss",
        "worst-case": "fsl-weighted-outer-loss",
        "uncertainty": "fsl-weighted-outer-loss",
        "gradient-norm": "fsl-weighted-outer-loss",
        "conflict-free": "fsl-weighted-outer-loss",
        "memory": "fsl-weighted-outer-loss",
        "random": "fsl-weighted-outer-loss",
    },
    "episodes": {"mini-imagenet": "fsl-learn2learn", "tiered-imagenet": "fsl-learn2learn"},
    "backbone": {"resnet12": "fsl-learn2learn", "wrn28": "fsl-learn2learn"},
}
