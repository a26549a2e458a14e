"""Random state from names, also of a GPU."""

from types import SimpleNamespace

import pytest
import torch

from fsl_core.data.seeding import set_seed


def test_without_a_gpu_it_is_torchs_own():
    set_seed(5)
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize("name", ["manual_seed_all", "manual_seed"])
def test_a_gpu_is_seeded_and_no_other_device_is_looked_for(monkeypatch, name):
    seeds = list[int]()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda: SimpleNamespace(**{name: seeds.append}))
    monkeypatch.setattr(torch, "manual_seed", None)
    set_seed(5)
    assert seeds == [5]
    assert torch.initial_seed() == 5
