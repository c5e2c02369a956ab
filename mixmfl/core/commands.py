"""The list of mixmfl's installed commands."""

from importlib.metadata import EntryPoint, entry_points


def commands() -> dict[str, EntryPoint]:
    """Return the commands of the installed mixmfl, by name."""
    scripts = entry_points(group="console_scripts")
    ours = {each.name: each for each in scripts if each.value.startswith("mixmfl.")}
    return dict(sorted(ours.items()))
