"""`differad train sft|rl`: a training run from a recipe."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from differad.cli.options import AsJson, print_json
from differad.cli.output import say, with_output_options
from differad.errors import DifferadError, MissingExtraError, PeerError
from differad.options import check_at_least, check_option

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe: model, data and settings.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to set, such as train.learning_rate=1e-5."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the run's last complete checkpoint, if there is one.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Read and check the recipe, print it, check that its data exists, and stop.")
]


def sft_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Cold start: teach a checkpoint to answer difference pairs in its own format.

    Example: differad train sft recipes/tiny/sft.yaml train.steps=100
    """
    _run("sft", recipe, overrides, resume, check, as_json)


def rl_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Reinforcement: difficulty-aware GRPO on a cold start.

    Example: differad train rl recipes/tiny/rl.yaml grpo.reward=dclr
    """
    _run("rl", recipe, overrides, resume, check, as_json)


def evidence_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; default: all cores.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Stop after this time.")] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto (an accelerator if there is one), cpu, or a name that torch knows.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Compute the embedded policy's features of a recipe's pairs before training, on an accelerator or on all cores.

    Example: differad train evidence recipes/tiny/sft.yaml
    """
    check_at_least("workers", workers, 1)
    check_option("minutes", minutes, minutes is None or minutes > 0, "more than 0")
    try:
        from differad.training.evidence import compute_pair_features
        from differad.training.recipe import load_any_recipe
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    result = compute_pair_features(
        load_any_recipe(recipe, overrides or ()), workers=workers, minutes=minutes, device=device
    )
    if as_json:
        print_json(result.to_dict())
        return
    say(
        f"{result.pairs} pairs: {result.computed} computed in {result.seconds:.1f} s on {result.device}, "
        f"{result.kept} already there: {result.folder}"
    )


train_app = typer.Typer(help="Train a policy: cold start (sft), then reinforcement (rl).", no_args_is_help=True)
for _phase, _command, _again in (
    ("sft", sft_command, "--resume goes on from the last whole checkpoint"),
    ("rl", rl_command, "--resume goes on from the last whole checkpoint"),
    ("evidence", evidence_command, "the same command goes on"),
):
    train_app.command(_phase)(with_output_options(_command, _again))


def _run(phase: str, path: Path, overrides: list[str] | None, resume: bool, check: bool, as_json: bool) -> None:
    recipe = _recipe(phase, path, overrides)
    if check:
        print_json(recipe.model_dump(mode="json"))
        _check_present(recipe)
        return
    try:
        _check_present(recipe)
        summary = _train(phase, recipe, resume)
    except PeerError as error:  # the process that failed reports the reason
        raise typer.Exit(error.exit_code) from None
    if os.environ.get("RANK", "0") != "0":  # one of several processes prints
        return
    if as_json:
        print_json(summary)
    else:
        say(f"{summary['steps']} steps; model: {summary['model']} (differad locate --model takes it)")


def _recipe(phase: str, path: Path, overrides: list[str] | None) -> Any:
    try:
        from differad.training.recipe import RlRecipe, SftRecipe, load_recipe
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    if phase == "sft":
        return load_recipe(path, SftRecipe, overrides or ())
    return load_recipe(path, RlRecipe, overrides or ())


def _check_present(recipe: Any) -> None:
    """Refuse a recipe with missing manifests or checkpoints; of the processes on one machine the first reports it."""
    from differad.training.inputs import check_present
    from differad.training.launch import raise_in_first

    try:
        check_present(recipe)
    except DifferadError as error:
        raise_in_first(error)


def _train(phase: str, recipe: Any, resume: bool) -> dict[str, Any]:
    try:
        if phase == "sft":
            from differad.training.sft import train_sft

            return train_sft(recipe, resume=resume)
        from differad.training.rl import train_rl
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return train_rl(recipe, resume=resume)


def _missing(error: ModuleNotFoundError) -> Exception:
    """The error for a package that is not installed; a missing module of differad itself remains a bug."""
    name = (error.name or "").partition(".")[0]
    return error if name in ("", "differad") else MissingExtraError("training", "train", name)
