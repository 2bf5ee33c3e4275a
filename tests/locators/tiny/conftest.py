"""An embedded policy of a few thousand weights."""

import pytest

SMALL = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}
AREA = 128 * 128


@pytest.fixture(scope="session")
def untaught(tmp_path_factory):
    """The folder of a policy with random weights, which sees images at about 128 x 128 pixels."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="the local extra is not installed")
    pytest.importorskip("yaml", reason="the train extra is not installed")
    import torch

    from differad.locators.tiny.processor import EvidenceProcessor
    from differad.training.recipe import Tiny
    from differad.training.tiny import build_tiny

    # On weights this few a second thread costs more than it brings, and very much more on a busy machine.
    torch.set_num_threads(1)
    folder = build_tiny(tmp_path_factory.mktemp("untaught"), Tiny(**SMALL), seed=0)
    EvidenceProcessor(size={"shortest_edge": AREA, "longest_edge": AREA}).save_pretrained(folder)
    return folder
