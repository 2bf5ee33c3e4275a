"""Each of two processes writes its results of shares and errors; run under torchrun by test_peers.py."""

import json
import sys
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState

from differad.data.manifest import read_pairs
from differad.errors import DifferadError, ImageError
from differad.training.peers import EndingTogether, gather_shares, take_share
from differad.training.policy import InMemoryLocator, load_model, open_checkpoint
from differad.training.recipe import RlRecipe
from differad.training.shared_locator import SharedLocator


class Failing(InMemoryLocator):
    """A policy that cannot answer on one process."""

    def locate_many(self, pairs):
        if PartialState().process_index == 1:
            raise ImageError("part.png: broken")
        return super().locate_many(pairs)


def attempt(task):
    """The error that `task` ends with, type and text; None where it ends well."""
    try:
        task()
    except (DifferadError, ZeroDivisionError) as error:
        return [type(error).__name__, str(error)]
    return None


def answers(locator, pairs):
    found = locator.on_main(lambda shared: list(shared.locate_many(pairs)))
    return found and [str(outcome) if isinstance(outcome, DifferadError) else outcome.answer for outcome in found]


def divide():
    with EndingTogether():
        if PartialState().process_index == 1:
            raise ZeroDivisionError("division by zero")
        torch.distributed.barrier()


def main(recipe_path, out):
    state = PartialState(cpu=True)
    recipe = RlRecipe.model_validate_json(Path(recipe_path).read_text())
    source = open_checkpoint(recipe.model, recipe.out, 0)
    model = load_model(source, recipe.model).eval()
    live, failing = (kind(model, source, batch_size=1, max_new_tokens=4) for kind in (InMemoryLocator, Failing))
    pairs = list(islice(read_pairs(recipe.data.pairs[0]), 3)) + list(read_pairs(recipe.held_out.pairs[0]))
    seen = {"rank": state.process_index, "joined": gather_shares(take_share(range(5)))}
    seen["split"] = answers(SharedLocator(live), pairs)
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    seen["lockstep"] = answers(SharedLocator(live, lockstep=model), pairs)
    hook.remove()
    seen["passes"] = len(passes)
    seen["share"] = attempt(lambda: answers(SharedLocator(failing), pairs))
    seen["main"] = attempt(lambda: SharedLocator(live).on_main(lambda _: 1 / 0))
    seen["alone"] = [str(o) if isinstance(o, DifferadError) else o.answer for o in live.locate_many(pairs)]
    seen["run"] = attempt(divide)
    Path(out, f"{state.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
