"""Everything fsl-core raises on purpose.

A message reads `<where>: <what was found>. <what would fit>.`
"""

from __future__ import annotations

from collections.abc import Iterable


class FslError(Exception):
    """Base of every error meant for a user: the command line prints it without a traceback.

    told: all processes of a run know of it, so one of them says it.
    """

    told: bool = False


class PluginError(FslError):
    """A plugin is absent, broken, a duplicate, or offers something the hooks refuse."""


class PluginWarning(UserWarning):
    """An observer plugin has raised and is left out; the run goes on."""


class RecipeError(FslError):
    """One or several faults of a recipe, all found in one reading.

    faults: one line each, `<file>:<line>: <key>: <what was found>. <what would fit>.`
    """

    def __init__(self, faults: str | Iterable[str]):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class UnfitError(RecipeError):
    """A hypergradient cannot estimate the meta-gradient of this adapter with these options.

    reason: in words, without the place.
    """

    def __init__(self, fault: str, reason: str):
        self.reason = reason
        super().__init__(fault)


class DataError(FslError):
    """Episodes cannot be made from the data found: absent, unreadable, damaged, or too small."""


class CacheError(FslError):
    """The cache folder is not safe to use: another user can write to it."""


class OptionError(FslError, ValueError):
    """A constructor was called with a value that its annotations do not allow."""


class ShapeError(FslError, ValueError):
    """A tensor has a shape that the called function cannot take."""


class RunError(FslError):
    """A run directory, a checkpoint or a training step is not usable."""


class TrainingError(RunError):
    """Training cannot go on."""


class DivergedError(TrainingError):
    """A loss, gradient or weight is not finite: these options do it on every machine."""


class LostRankError(RunError):
    """Another process of the same run has ended, or cannot be reached any more.

    ended: ranks that are known to have ended.    rank: the one that tells it.
    """

    def __init__(self, ended: list[int], rank: int):
        self.ended, self.rank = ended, rank
        who = f"rank {' and '.join(map(str, ended))}" if ended else "another process of this run"
        super().__init__(
            f"rank {rank}: {who} has ended, and the run with it. `fsl resume` goes on from the "
            "last checkpoint, with any number of processes"
        )


class Interrupted(KeyboardInterrupt):
    """A run has stopped as it was asked to.

    Not an Exception, because it is not a fault of what was running.
    """
