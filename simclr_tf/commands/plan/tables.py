"""Formats plans as text."""

from __future__ import annotations

from typing import Any

from simclr_tf.commands.plan.search import Largest


def gib(nbytes: float) -> str:
    """Formats bytes: 15.8 GiB."""
    return f"{nbytes / 2**30:.4g} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.3g} MiB"


def step_table(told: dict[str, Any]) -> str:
    """Returns the answer of `plan.describe` as a table."""
    versions = ", ".join(f"{name} {version}" for name, version in told["compiler"].items())
    rows = [("compiler", f"{told['compiled_in_seconds']:.0f} s ({versions})")]
    # A chip reserves some of its memory.
    available = gib(told.get("available_bytes", told["memory_bytes_per_replica"]))
    if not told["fits"]:
        needed = gib(told["needed_bytes"]) if "needed_bytes" in told else told.get("message", "more than there is")
        rows.append(("fits", f"no: needs {needed} of {available} per replica; try a smaller batch, or more replicas"))
    else:
        memory, bound = told["memory"], told["bound"]
        parts = ", ".join(f"{name} {gib(size)}" for name, size in memory.items() if name != "total" and size)
        exchanges = told["collectives"].values()
        exchanged = (
            f", {sum(part['bytes'] for part in exchanges) / 1e6:.4g} MB in {sum(part['count'] for part in exchanges)} "
            "sums over replicas"
            if exchanges
            else ""
        )
        least, most = ("at least", "at most") if bound["at_least"] else ("about", "about")
        bound_note = "" if bound["at_least"] else f" (at least {bound['least_hours']:.3g})"
        seconds = ", ".join(f"{name} {1000 * value:.3g}" for name, value in bound["seconds"].items())
        rows += [
            ("fits", f"yes: {gib(memory['total'])} of {available} per replica ({parts})"),
            (
                "work of a step",
                f"{told['flops'] / 1e12:.3g} TFLOP, {told['bytes_accessed'] / 1e9:.3g} GB moved{exchanged}",
            ),
            ("a step takes", f"{least} {1000 * bound['step_seconds']:.3g} ms ({bound['bound_by']}; {seconds})"),
            (
                "the run takes",
                f"{least} {bound['hours']:.3g} hours{bound_note}, {bound['chip_hours']:.4g} chip-hours: "
                f"{told['steps']} steps ({told['epochs']:g} epochs), {most} {bound['images_per_second']:.4g} images/s",
            ),
        ]
        if "cost" in bound:
            rows.append(("it costs", f"{least} {bound['cost']:.4g}"))
    return "\n".join(f"  {name:<16}{text}" for name, text in rows)


def search_line(name: str, found: Largest | str) -> str:
    """Returns a line with a search's answer, or the reason why there is none."""
    if isinstance(found, str):
        text = f"not known: {found}"
    elif not found.batch_size:
        text = "none"
    else:
        text = str(found.batch_size)
        if not found.exact:
            text += f" or more (after {len(found.tries)} tries)"
        elif found.at_limit:
            text += ", the whole batch"
    return f"    {name:<28}{text}"
