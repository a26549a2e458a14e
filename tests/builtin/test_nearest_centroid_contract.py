from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.testing import AdapterContract


class TestNearestCentroid(AdapterContract):
    def make(self, task):
        return NearestCentroid(task)


class TestCosine(AdapterContract):
    def make(self, task):
        return NearestCentroid(task, distance="cosine", temperature=10.0, learn_temperature=True)


class TestSimpleShot(AdapterContract):
    def make(self, task):
        return NearestCentroid(task, power=0.5, centre="support", unit_length=True)
