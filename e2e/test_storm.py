"""A storm of placements in which the operator is killed again and again, at moments that nobody chose: every request is answered, no byte is
committed twice, nothing is left behind. On host memory, and on GPUs.
"""

from __future__ import annotations

from e2e.support import gpus, storm
from e2e.support.ask import ask
from e2e.support.gpus import GI, TEAM_A, model
from e2e.support.kubectl import until
from e2e.support.ledger import Witness
from e2e.support.world import MODELS, World, deployment

ANIMALS = ("alpaca", "badger", "camel")
HERD = {f"{animal}-{number}": f"I am {animal}." for number in (1, 2) for animal in ANIMALS}  # six models of one size, room for two
# Seven models for four GPUs: one that fills its GPU, four that fill most of one, two that go beside those.
GPU_HERD = {"eel": 7.0, "bee": 5.0, "pig": 5.0, "ram": 5.0, "yak": 5.0, "fox": 2.3, "hen": 2.0}


def test_a_storm_in_which_the_operator_dies_again_and_again(world: World, witness: Witness) -> None:
    world.apply(*(deployment(name, world.sources[name.partition("-")[0]]) for name in HERD))
    world.wait_ready(*HERD)
    storm.rage(world, HERD, clients=4)
    witness.assert_clean()
    for name, said in HERD.items():  # whoever leads now has a right picture
        assert ask(world, name) == said
    until("one pod per model is left when nothing moves any more", lambda: all(len(world.pods(name)) <= 1 for name in HERD), 60)
    world.remove_models()
    until("nothing of theirs is left", lambda: not storm.left(world, MODELS), 60)


def test_a_storm_over_gpus(gpu_fleet: World, gpu_witness: gpus.Witness) -> None:
    world = gpu_fleet
    herd = {name: f"I am {name}." for name in GPU_HERD}
    world.apply(*(model(name, size * GI, TEAM_A) for name, size in GPU_HERD.items()))
    world.kubectl.run("wait", "md", *herd, "-n", TEAM_A, "--for=condition=Ready", "--timeout=120s", timeout=130)
    storm.rage(world, herd, clients=6)
    gpu_witness.assert_clean()
    for name, said in herd.items():
        assert ask(world, name) == said
    gpus.remove_all(world)
    until("nothing of theirs is left", lambda: not storm.left(world, TEAM_A), 60)
