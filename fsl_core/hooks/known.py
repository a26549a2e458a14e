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
        "fiml": "fsl-fiml",
        "gradient-flow": "fsl-gradient-flow",
        "l2l-maml": "fsl-learn2learn",
        "l2l-anil": "fsl-learn2learn",
        "l2l-metasgd": "fsl-learn2learn",
        "l2l-gbml": "fsl-learn2learn",
        "l2l-metacurvature": "fsl-learn2learn",
        "l2l-metaoptnet": "fsl-learn2learn",
    },
    "hypergradient": {
        "truncated": "fsl-hypergradients",
        "implicit": "fsl-hypergradients",
        "finite-difference": "fsl-hypergradients",
        "gaussian-smoothing": "fsl-hypergradients",
        "reptile": "fsl-hypergradients",
        "sgld": "fsl-hypergradients",
        "memory": "fsl-moml",
    },
    "weighting": {
        "gradient-similarity": "fsl-weighted-outer-loss",
        "softmax-loss": "fsl-weighted-outer-loss",
        "focal": "fsl-weighted-outer-loss",
        "worst-case": "fsl-weighted-outer-loss",
        "log-loss": "fsl-weighted-outer-loss",
        "uncertainty": "fsl-weighted-outer-loss",
        "gradient-norm": "fsl-weighted-outer-loss",
        "conflict-free": "fsl-weighted-outer-loss",
        "memory": "fsl-weighted-outer-loss",
        "random": "fsl-weighted-outer-loss",
    },
    "episodes": {
        "mini-imagenet": "fsl-learn2learn",
        "tiered-imagenet": "fsl-learn2learn",
        "threshold-comparison": "fsl-wormhole",
        "wavelet-transform": "fsl-wormhole",
        "l2l-cifar-fs": "fsl-learn2learn",
        "l2l-fc100": "fsl-learn2learn",
        "l2l-omniglot": "fsl-learn2learn",
        "l2l-cub": "fsl-learn2learn",
        "l2l-aircraft": "fsl-learn2learn",
        "l2l-dtd": "fsl-learn2learn",
        "l2l-quickdraw": "fsl-learn2learn",
        "l2l-fungi": "fsl-learn2learn",
        "l2l-vgg-flowers": "fsl-learn2learn",
    },
    "backbone": {
        "timm": "fsl-timm",
        "l2l-cnn4": "fsl-learn2learn",
        "resnet12": "fsl-learn2learn",
        "wrn28": "fsl-learn2learn",
    },
    "launcher": {
        "slurm": "fsl-submitit",
        "ray": "fsl-ray",
    },
    "searcher": {
        "optuna": "fsl-optuna",
    },
    "store": {
        "hf": "fsl-hub",
    },
}

TRACKERS = {"mlflow": "fsl-mlflow", "trackio": "fsl-wandb", "wandb": "fsl-wandb"}
"""Names that FSL_TRACKER may have, and the package of each."""
