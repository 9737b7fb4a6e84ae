# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore`: interleavings of a guest script with migration passes, on the order model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError
from guestemu.cli._explore_page_states import page_states
from guestemu.cli._kernel_migration import kernel_migration
from guestemu.cli._mirror import mirror
from guestemu.cli._options import AsJson, Cluster, Html
from guestemu.cli.errors import EXIT_OK

if TYPE_CHECKING:
    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.programs import LinkKind

GROUP: Final = "Migration"
ORDER: Final = 10

DEFAULT_PASSES: Final = 2
DEFAULT_DEPTH: Final = 3
MAX_PASSES: Final = 1000
MAX_REDUCED_PASSES: Final = 100
"""Its runs between kept states grow with the passes, its time with their square."""

MAX_RUNS: Final = 10_000_000

app = typer.Typer(rich_markup_mode=None)
app.command("kernel-migration")(kernel_migration)
app.command("mirror")(mirror)
app.command("page-states")(page_states)


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="N|STEPS",
            help="Host order: a row of the table, 1 to 6, or the steps of a pass, as 'G E C S'.",
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|STEPS",
            help="Guest script: S1, S1b, S1c, S2, S3, S0, or steps such as 'PTE- HC- t1!'.",
        ),
    ] = None,
    table: Annotated[
        bool,
        typer.Option(
            "--table", help="All orders and scripts (the default without --order and --script)."
        ),
    ] = False,
    passes: Annotated[
        int, typer.Option(min=1, max=MAX_PASSES, help="Live passes before STOP.")
    ] = DEFAULT_PASSES,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Change a rule of the model, such as pte-sets-dirty; repeatable; "
            "an unknown name lists them.",
        ),
    ] = None,
    reduce: Annotated[
        bool,
        typer.Option("--reduce", help="Also explore with partial-order reduction, and compare."),
    ] = False,
    witness: Annotated[
        int | None,
        typer.Option(metavar="K", min=0, help="Show losing interleaving K, from 0 on."),
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the losing interleavings, one a line.")
    ] = False,
    defined: Annotated[
        bool,
        typer.Option("--defined", help="Number and list those that lose by lost_defined."),
    ] = False,
    pct: Annotated[
        int | None,
        typer.Option(
            metavar="RUNS",
            min=1,
            max=MAX_RUNS,
            help="Random interleavings by priorities (PCT) instead of all.",
        ),
    ] = None,
    depth: Annotated[
        int, typer.Option(min=1, help="With --pct: ordering constraints of the loss sought.")
    ] = DEFAULT_DEPTH,
    seed: Annotated[
        int, typer.Option(help="With --pct and --confirm: seed of the random numbers.")
    ] = 0,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Re-run N losing interleavings, and as many others, as migrations on the machine.",
        ),
    ] = None,
    link: Annotated[
        str,
        typer.Option(
            metavar="plain|firmware|handler",
            help="With --confirm and --prog: how private pages travel.",
        ),
    ] = "plain",
    prog: Annotated[
        Path | None,
        typer.Option(metavar="OUT.prog", help="With --witness: write it as a program to run."),
    ] = None,
    html: Html = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> int:
    """Explore interleavings of a conversion and a migration.

    One page on a small model: the guest's script is merged in every way with the steps of the live
    passes and STOP; a final pass follows, the rest of the script runs at the destination. An
    interleaving loses if the guest does not read the last value that it wrote. lost_strict counts
    all of these, lost_defined those without a C-bit flip after that write.

    Steps: PTE- PTE+ (the leaf becomes shared, private), HC- HC+ (hypercall), CH- CH+ (in front of
    HC: a chunk of a TD's MapGPA that the page is not in), tN! (write of value N); D (fetch of the
    dirty log, cleared with it), G (GET), C (CLEAR), E (the status is copied), S (send by the copy),
    L (send by the present status).

    Exit status 1: some interleaving loses by lost_strict (with --defined: by lost_defined); with
    --confirm: the machine disagrees with the model.

    For example:

      guestemu explore --table

      guestemu explore --order 2 --script S1 --witness 0 --html witness.html

      guestemu explore --order 'E D S' --script 'HC- PTE- t1!' --passes 5 --list

      guestemu explore --order 3 --script S2 --pct 10000 --depth 3 --passes 50

      guestemu explore --script 'PTE- CH- HC- t1!' --rule cut-reads-success

      guestemu explore --confirm all

      guestemu explore --confirm all --cluster tcp://192.0.2.1:8786

      guestemu explore --order 2 --script S1 --witness 3 --prog lost.prog
    """
    from guestemu.cli import _explore, _explore_machine

    if context.invoked_subcommand is not None:
        _check_unused(context)
        return EXIT_OK
    modes = {"--witness": witness is not None, "--list": list_all, "--pct": pct is not None}
    mode = _mode(modes, order, script)
    _check_switches(mode, table, bool(order or script), reduce, defined, passes)
    kind = _check_machine(mode, confirm, prog, link, reduce)
    if html is not None and (confirm is not None or list_all or pct is not None or reduce):
        raise InputError("explore: --html is a page of the table or of --witness; leave it out")
    if cluster is not None and confirm is None:
        raise InputError(
            "explore: --cluster goes with --confirm; all else takes less than a second"
        )
    scenarios = _scenarios(order, script, passes, rule or [])
    if confirm is not None:
        return _explore_machine.confirm(scenarios, confirm, seed, kind, as_json, cluster)
    if witness is not None and prog is not None:
        _explore_machine.write(scenarios[0], witness, defined, kind, prog)
    if witness is not None:
        return _explore.show_witness(scenarios[0], witness, defined, as_json, html)
    if list_all:
        return _explore.list_witnesses(scenarios[0], defined, as_json)
    if pct is not None:
        return _explore.show_random(scenarios[0], pct, depth, seed, as_json)
    return _explore.show_table(scenarios, reduce, as_json, html)


def _check_unused(context: typer.Context) -> None:
    """Refuses options of `explore` itself in front of a verb of its own."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(one.opts[0] for one in context.command.params if one.name == name)
            raise InputError(
                f"explore: {option} has no meaning with {context.invoked_subcommand}; "
                f"give options of {context.invoked_subcommand} behind its name"
            )


def _mode(modes: dict[str, bool], order: str | None, script: str | None) -> str | None:
    """Which of the options that look at one cell was given, None for a table."""
    given = [name for name, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise InputError(f"explore: {given[0]} and {given[1]} do different things; give one")
    if given and (order is None or script is None):
        raise InputError(f"explore: {given[0]} looks at one cell; give --order and --script")
    return given[0] if given else None


def _check_switches(
    mode: str | None,
    is_table: bool,
    is_part: bool,
    is_reduced: bool,
    is_defined: bool,
    passes: int,
) -> None:
    """Refuses switches that would be without effect."""
    if is_table and (mode or is_part):
        other = mode or "--order and --script"
        raise InputError(f"explore: --table is about all cells, {other} not; leave one out")
    if is_reduced and mode:
        raise InputError(f"explore: --reduce has no meaning with {mode}; leave it out")
    if is_reduced and passes > MAX_REDUCED_PASSES:
        raise InputError(
            f"explore: --reduce goes up to --passes {MAX_REDUCED_PASSES}, not {passes}"
        )
    if is_defined and mode not in ("--witness", "--list"):
        raise InputError("explore: --defined goes with --witness or --list; counts have both")


def _check_machine(
    mode: str | None, confirm: str | None, prog: Path | None, link: str, is_reduced: bool
) -> LinkKind:
    """What --link names. Refuses switches that would be without effect."""
    from guestemu.migration.model.programs import LinkKind

    if confirm is not None and (mode or is_reduced):
        raise InputError(f"explore: --confirm has no meaning with {mode or '--reduce'}; give one")
    if prog is not None and mode != "--witness":
        raise InputError("explore: --prog writes one interleaving; add --witness K")
    if link not in list(LinkKind):
        raise InputError(f"explore: --link {link!r}; use {', '.join(LinkKind)}")
    kind = LinkKind(link)
    if kind is not LinkKind.PLAIN and confirm is None and prog is None:
        raise InputError("explore: --link goes with --confirm or --prog; leave it out")
    return kind


def _scenarios(
    order: str | None, script: str | None, passes: int, rule: list[str]
) -> list[Scenario]:
    """The cells asked for: where no order or script is given, all of the table's."""
    from guestemu.migration.model.notation import parse_order, parse_rules, parse_script
    from guestemu.migration.model.order_model import Scenario
    from guestemu.migration.model.steps import ORDERS, SCRIPTS

    orders = ORDERS if order is None else (parse_order(order),)
    scripts = SCRIPTS if script is None else (parse_script(script),)
    rules = parse_rules(rule)
    return [Scenario(one, other, passes, rules) for one in orders for other in scripts]
