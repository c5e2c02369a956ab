"""Write what docs/federation.md tells of messages: every field, and sizes of an example.

Run by ``make messages``; a test compares the page with what this makes.
"""

import re
from pathlib import Path

import numpy as np
import torch

from mixmfl.data.labels import Labels
from mixmfl.federated.client.outbound import outbound_table
from mixmfl.federated.client.outbound_preview import preview_outbound
from mixmfl.federated.messages import SENT
from mixmfl.federated.state import RunSettings, Site
from mixmfl.planning.fingerprint import Fingerprint, fingerprint_case, merge_fingerprints
from mixmfl.planning.nnunet_planner import plan
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.planning.preprocessed_case import PreprocessedCase

PAGE = Path(__file__).parent / "federation.md"
LABELS = Labels({"background": 0, "whole_tumour": (1, 2), "core": 2}, (1, 2))
GRID = (96, 160, 144)  # of every case of the example: voxels of 1 mm, (Z, Y, X)


def fields() -> str:
    """Return a table of every field of every message from a site."""
    lines = ["| message | field | what it is |", "| --- | --- | --- |"]
    for kind, told in SENT.items():
        rows = told.items() or [("", "nothing")]
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
    plans = Plans(names, LABELS, planned, preset.network, preset.training)
    settings = RunSettings("3d_fullres", 0, preset.training.rounds, 1, 1e-3)
    stored = tuple(
        PreprocessedCase(Path(), "", modalities, "", (1.0, 1.0, 1.0), None, None, {})
        for modalities in mine
    )
    site = Site("north", stored[:-3], stored[-3:], torch.device("cpu"))
    return f"```text\n{outbound_table(preview_outbound(site, here, plans, settings))}\n```"


def _fingerprint(cases: list[tuple[str, ...]]) -> Fingerprint:
    """Return the fingerprint of like cases with these modalities."""
    labels = np.zeros(GRID, dtype=np.int16)
    labels[40:60, 60:90, 60:90] = 1
    labels[45:55, 70:80, 70:80] = 2
    image = np.random.default_rng(0).normal(100, 10, GRID).astype(np.float32)
    box = slice(0, GRID[0]), slice(0, GRID[1]), slice(0, GRID[2])
    by_modalities = {
        held: fingerprint_case(dict.fromkeys(held, image), labels, (1.0, 1.0, 1.0), box)
        for held in set(cases)
    }
    return merge_fingerprints([by_modalities[held] for held in cases])


def filled(page: str) -> str:
    """Return a page with what stands between the marks of each table made anew."""
    for name, make in (("fields", fields), ("example", example)):
        mark = rf"(<!-- made by docs/generate.py: {name} -->\n).*?(<!-- end of {name} -->)"
        page = re.sub(mark, rf"\g<1>\n{make()}\n\n\g<2>", page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
