"""What tests share: a toy plugin, and parts that are wrong on purpose.

- `toy/`: a recipe that trains in a second and its plugin (fixtures `toy_recipe`, `toy_plugins`);
- `kit/`: adapters, backbones, episodes and weightings for the conformance kit, each wrong in one
  way, beside sound ones (`tests/testing`);
- `preflight/`: the same for the trial before a run, as plugins (`tests/assembly/test_preflight`).

The fixtures that use them are in `tests/conftest.py`.
"""
