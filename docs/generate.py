"""Write the tables of docs/federation.md and docs/plans.md that the code declares.

The one has every field of every message, and sizes of an example; the other has every setting.
Run by ``make tables``; a test compares the pages with what this makes.
"""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixmfl.core.declarations import settings_of
from mixmfl.data.labels import Labels
from mixmfl.federated.client.outbound import outbound_table
from mixmfl.federated.client.outbound_preview import preview_outbound
from mixmfl.federated.messages import SENT
from mixmfl.federated.state import RunSettings, Site
from mixmfl.planning.fingerprint import (
    Fingerprint,
    count_patients,
    fingerprint_case,
    merge_fingerprints,
)
from mixmfl.planning.heads import STRIPPED
from mixmfl.planning.nnunet_planner import plan
from mixmfl.planning.plans import Plans, Preset, load_preset, preset_names
from mixmfl.planning.preprocessed_case import PreprocessedCase

PAGES = [Path(__file__).with_name(name) for name in ("federation.md", "plans.md")]
LABELS = Labels({"background": 0, "whole_tumour": (1, 2), "core": 2}, (1, 2))
GRID = (96, 160, 144)  # of every case of the example: voxels of 1 mm, (Z, Y, X)


def fields() -> str:
    """Return a table of every field of every message from a site."""
    lines = ["| message | field | what it is |", "| --- | --- | --- |"]
    for kind, carried in SENT.items():
        rows = carried.items() or [("", "nothing")]
        lines += [
            f"| {f'`{kind}`' if not number else ''} | {f'`{name}`' if name else ''} | {what} |"
            for number, (name, what) in enumerate(rows)
        ]
    return "\n".join(lines)


def example() -> str:
    """Return what would leave a hospital with 16 cases of T1 and T2, 12 of them with both.

    The federation's other three hospitals have T1c and FLAIR; preset ``default``, 3-D.
    """
    names = ("flair", "t1", "t1c", "t2")
    mine: list[tuple[str, ...]] = [("t1", "t2")] * 12 + [("t1",)] * 4
    here = _fingerprint(mine)
    preset = load_preset("default")
    planned = plan(
        merge_fingerprints([here, _fingerprint([names] * 48)]),
        names,
        LABELS,
        preset.planner,
        preset.network,
    )
    plans = Plans(names, LABELS, planned, preset.network, preset.training, STRIPPED)
    settings = RunSettings("3d_fullres", 0, preset.training.rounds, 1, 1e-3)
    stored = tuple(
        PreprocessedCase(Path(), "", modalities, "", (1.0, 1.0, 1.0), None, None, {})
        for modalities in mine
    )
    site = Site("north", stored[:-3], stored[-3:], torch.device("cpu"))
    behind = count_patients((str(number), _fingerprint([held])) for number, held in enumerate(mine))
    return f"```text\n{outbound_table(preview_outbound(site, here, plans, settings, behind))}\n```"


def _fingerprint(cases: list[tuple[str, ...]]) -> Fingerprint:
    """Return the fingerprint of like cases with these modalities."""
    return merge_fingerprints([_of_case(modalities) for modalities in cases])


@cache
def _of_case(modalities: tuple[str, ...]) -> Fingerprint:
    """Return the fingerprint of a case with these modalities."""
    labels = np.zeros(GRID, dtype=np.int16)
    labels[40:60, 60:90, 60:90] = 1
    labels[45:55, 70:80, 70:80] = 2
    image = np.random.default_rng(0).normal(100, 10, GRID).astype(np.float32)
    box = slice(0, GRID[0]), slice(0, GRID[1]), slice(0, GRID[2])
    return fingerprint_case(dict.fromkeys(modalities, image), labels, (1.0, 1.0, 1.0), box)


def planner() -> str:
    """Return a table of the planner's settings."""
    return _settings(Preset().planner)


def network() -> str:
    """Return a table of the network's settings."""
    return _settings(Preset().network)


def training() -> str:
    """Return a table of the settings of training."""
    return _settings(Preset().training)


def presets() -> str:
    """Return a table of what each shipped preset changes of the defaults."""
    lines = ["| preset | what differs from the defaults |", "| --- | --- |"]
    defaults = dataclasses.asdict(Preset())
    for name in preset_names():
        preset = dataclasses.asdict(load_preset(name))
        changes = [
            f"`{setting}` {_shown(value)}"
            for part, settings in preset.items()
            for setting, value in settings.items()
            if value != defaults[part][setting]
        ]
        lines.append(f"| `{name}` | {', '.join(changes) or 'nothing'} |")
    return "\n".join(lines)


def _settings(defaults: Any) -> str:
    """Return a table of settings, given their defaults."""
    lines = ["| field | unit | default | values | reason |", "| --- | --- | --- | --- | --- |"]
    values = dataclasses.asdict(defaults)
    lines += [
        f"| `{each.name}` | {each.unit} | {_shown(values[each.name])} | {each.needed} "
        f"| {each.reason} |"
        for each in settings_of(type(defaults))
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Return a setting's value as a table has it: as in JSON, words without quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


TABLES = {made.__name__: made for made in (fields, example, presets, planner, network, training)}


def filled(page: str) -> str:
    """Return a page with what stands between the marks of each table made again."""
    for name, make in TABLES.items():
        if (begin := f"<!-- made by docs/generate.py: {name} -->\n") in page:
            before, _, rest = page.partition(begin)
            _, end, after = rest.partition(f"<!-- end of {name} -->")
            page = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
