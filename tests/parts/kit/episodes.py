"""A sound source of episodes and its faulty twins; FAULTS says which property of the kit shows
each."""

import itertools

import numpy as np
import torch

import fsl_core as fsl


class Blobs(fsl.EpisodeSource):
    """Classes are points in the plane, items are points around them; eight numbers per class and
    item, drawn in float64."""

    name = "blobs"

    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (2,), 2)

    def batch(self, split, indices, seed, task=None):
        task = task or self.task
        return torch.utils.data.default_collate(
            [self.episode(split, index, seed, task) for index in indices]
        )

    def episode(self, split, index, seed, task):
        per_class = task.n_shot + task.n_query
        u = fsl.to_uniform(fsl.draw_bits(seed, split, [index], task.n_way * (1 + per_class) * 2))[0]
        u = torch.from_numpy(u.astype(np.float32)).view(task.n_way, 1 + per_class, 2)
        x = u[:, :1] + 0.1 * u[:, 1:]
        return fsl.Episode(
            self.items(x[:, : task.n_shot]), self.items(x[:, task.n_shot :]), torch.tensor(index)
        )

    def items(self, x):
        return fsl.LabelledSet(x.flatten(0, 1), torch.arange(len(x)).repeat_interleave(x.shape[1]))


class TokenIds(Blobs):
    """Sixteen ids that say of which class and item they are, as digits."""

    vocabulary = 10

    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (16,), 2)

    def items(self, x):
        digits = 10 ** torch.arange(1, 9) * x.flatten(0, 1)[..., None]
        return super().items(x)._replace(x=digits.flatten(1).long() % 10)


class IdsBeyondTheVocabulary(TokenIds):
    vocabulary = 5


class IdsWithoutVocabulary(TokenIds):
    vocabulary = None


class IdsAsFloats(TokenIds):
    def items(self, x):
        return super().items(x)._replace(x=super().items(x).x.float())


class SingleNumbers(Blobs):
    """Items without an axis."""

    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (), 2)

    def items(self, x):
        return super().items(x)._replace(x=x[..., 0].flatten())


class VaryingBlobs(Blobs):
    """As Blobs, with ways and shots that differ from one episode to the next."""

    def __init__(self):
        varies = fsl.Varies((2, 3), (1, 3))
        self.task = fsl.TaskShape("classification", 3, 3, 2, (2,), 3, varies)


class ShapesOfTheBatch(VaryingBlobs):
    """The shape depends on the place in the batch."""

    def groups(self, split, indices, seed, task=None):
        groups = super().groups(split, range(len(indices)), seed, task)
        return [
            group._replace(
                episodes=self.batch(split, [indices[i] for i in group.places], seed, group.task)
            )
            for group in groups
        ]


class VariesInWordsAlone(VaryingBlobs):
    def groups(self, split, indices, seed, task=None):
        return super().groups(split, indices, seed, (task or self.task).least)


class LosesAPlace(VaryingBlobs):
    def groups(self, split, indices, seed, task=None):
        groups = super().groups(split, indices, seed, task)
        return groups if len(indices) < 20 else groups[1:]


class BeyondItsRange(VaryingBlobs):
    def groups(self, split, indices, seed, task=None):
        task = fsl.TaskShape("classification", 3, 4, 2, (2,), 3, fsl.Varies((2, 3), (2, 4)))
        return super().groups(split, indices, seed, task)


class NotASource:
    task = Blobs().task


class ConstructorRaises(Blobs):
    def __init__(self):
        super().__init__()
        self.width = {}["width"]


class OneLogitForTwoWays(Blobs):
    def __init__(self):
        self.task = fsl.TaskShape("classification", 2, 1, 2, (2,), 1)


class LabelsAsFloats(Blobs):
    def items(self, x):
        return super().items(x)._replace(y=super().items(x).y.float())


class ClassesInterleaved(Blobs):
    def items(self, x):
        return fsl.LabelledSet(
            x.transpose(0, 1).flatten(0, 1), torch.arange(len(x)).repeat(x.shape[1])
        )


class QueriesOfTheSupport(Blobs):
    def episode(self, split, index, seed, task):
        episode = super().episode(split, index, seed, task)
        first = torch.arange(task.n_way) * task.n_query
        x = episode.query.x.index_copy(0, first, episode.support.x[:: task.n_shot])
        return episode._replace(query=episode.query._replace(x=x))


class GlobalNoise(Blobs):
    def items(self, x):
        return super().items(x + 0.01 * torch.rand_like(x))


class MovesTheGlobalState(Blobs):
    def items(self, x):
        torch.rand(1)
        return super().items(x)


class CountsItsCalls(Blobs):
    calls = 0

    def episode(self, split, index, seed, task):
        self.calls += 1
        return super().episode(split, index + self.calls, seed, task)


class AlwaysTheSame(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode(split, 0, seed, task)


class DeafToTheSeed(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode(split, index, 0, task)


class OneSplit(Blobs):
    def episode(self, split, index, seed, task):
        return super().episode("train", index, seed, task)


class FixedShape(Blobs):
    def batch(self, split, indices, seed, task=None):
        return super().batch(split, indices, seed)


class NumbersBeyondItsTasks(Blobs):
    tasks = 3


class SupportAlone(Blobs):
    def fingerprint(self, episodes):
        return episodes.support.y.numpy().tobytes()


class DigestOfTheObject(Blobs):
    def inspect(self, split, digest=True):
        return fsl.SplitContents({"a": 5, "b": 5}, f"{next(COUNTER)}")


class EmptyClass(Blobs):
    def inspect(self, split, digest=True):
        return fsl.SplitContents({"a": 5, "b": 0}, "0")


COUNTER = itertools.count()


FAULTS = [
    (NotASource, "claims"),
    (ConstructorRaises, "claims"),
    (OneLogitForTwoWays, "claims"),
    (LabelsAsFloats, "a_batch_has_its_shape"),
    (IdsBeyondTheVocabulary, "a_batch_has_its_shape"),
    (IdsWithoutVocabulary, "a_batch_has_its_shape"),
    (IdsAsFloats, "a_batch_has_its_shape"),
    (ClassesInterleaved, "a_batch_has_its_shape"),
    (QueriesOfTheSupport, "items_of_an_episode_differ"),
    (GlobalNoise, "an_episode_is_a_function_of_split_index_and_seed"),
    (MovesTheGlobalState, "an_episode_is_a_function_of_split_index_and_seed"),
    (CountsItsCalls, "an_episode_is_a_function_of_split_index_and_seed"),
    (AlwaysTheSame, "episodes_differ"),
    (DeafToTheSeed, "episodes_differ"),
    (OneSplit, "episodes_differ"),
    (OneSplit, "splits_share_no_item"),
    (FixedShape, "other_ways_and_shots"),
    (ShapesOfTheBatch, "an_episode_is_a_function_of_split_index_and_seed"),
    (VariesInWordsAlone, "what_varies"),
    (LosesAPlace, "what_varies"),
    (BeyondItsRange, "what_varies"),
    (NumbersBeyondItsTasks, "ids"),
    (SupportAlone, "fingerprint_tells_episodes_apart"),
    (DigestOfTheObject, "what_a_split_is_made_of"),
    (EmptyClass, "what_a_split_is_made_of"),
]
