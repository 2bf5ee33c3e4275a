"""`differad audit-reward`: what each localization reward pays for, as a table, a plot or JSON."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from differad.cli.options import AsJson, print_json
from differad.images import check_drawn, check_ending, write_drawn
from differad.training.audit import audit, plot_audit
from differad.training.localization import DEFAULT_VARIANT


def audit_command(
    save: Annotated[
        Path | None, typer.Option("--save", help="Plot of reward against IoU, .png.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score boxes of many sizes and offsets with every localization reward, and say what pays.

    Example: differad audit-reward --save audit.png
    """
    figures = audit()
    if save is not None:
        check_ending(save)
        check_drawn(save)
    if as_json:
        print_json(figures)
    else:
        _print(figures)
    if save is not None:
        write_drawn(save, plot_audit())


def _print(figures: dict[str, Any]) -> None:
    table = Table("", *figures["rewards"], box=None, padding=(0, 2, 0, 0), header_style="bold")
    rewards = list(figures["rewards"].values())
    table.add_row("most at IoU < 0.05", *(f"{reward['best_reward_below_0.05']:.3f}" for reward in rewards))
    for side in rewards[0]["whole_square"]:
        table.add_row(f"whole square, truth {side}", *(f"{reward['whole_square'][side]:.3f}" for reward in rewards))
    table.add_row("misses paid 0.3 or more", *(f"{reward['misses_above_0.3']:.1%}" for reward in rewards))
    table.add_row("distinct at IoU 0", *(f"{reward['distinct_at_iou_0']:.1%}" for reward in rewards))
    for index, band in enumerate(rewards[0]["bands"]):
        low, high = band["iou"]
        cells = (f"{reward['bands'][index]['least']:.2f}..{reward['bands'][index]['most']:.2f}" for reward in rewards)
        table.add_row(f"IoU {low:g} to {high:g}", *cells)
    console = Console()
    console.print(table)
    console.print(f"{figures['trials']:,} boxes; sides in thousandths; the default is {DEFAULT_VARIANT}")
