"""Model files, first weights, checkpoints and preprocessed cases under attack."""

import dataclasses
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from mutations import NAMES, mutated_bytes, mutated_json, mutated_safetensors
from small import model_bytes, small_plans, stored_site, write_model
from targets import HARMLESS, SAME, WrongError, judged, plain

from mixmfl.core.tensor_store import read
from mixmfl.data.modalities import Modalities
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.subset_dice import SubsetDice
from mixmfl.federated.server.checkpoint import last_state, save_round, start_run
from mixmfl.federated.server.initial_state import start_from
from mixmfl.federated.server.measured import load_measured, save_measured
from mixmfl.federated.server.run import Run, SiteRound, choose_round
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.run_tables import progress_table
from mixmfl.federated.state import Registration, RunSettings, first_state
from mixmfl.inference.model import Model
from mixmfl.inference.model_file import load_model
from mixmfl.planning.architecture import resolve_architecture
from mixmfl.planning.preprocessed_case import PreprocessedCase, open_case

SETTINGS = RunSettings("2d", 0, 1, 1, 0.01)


class ModelFile:
    """A model file: what loads is the same model, unless its digests were made again.

    With digests that fit, it is another model, and then it must predict labels of its own plans.
    """

    def __init__(self, folder: Path) -> None:
        self.good = write_model(folder / "good.safetensors").read_bytes()
        self.file = folder / "model.safetensors"
        self.model = load_model(folder / "good.safetensors")
        self.tensors, self.header = read(folder / "good.safetensors")
        image = np.random.default_rng(0).normal(10, 1, (16, 16, 4)).astype(np.float32)
        self.images = {"t1": (image, np.diag([1.0, 1.0, 2.0, 1.0]))}

    def attack(self, draw: random.Random) -> str:
        if draw.random() < 0.6:
            self.file.write_bytes(mutated_safetensors(self.good, draw))
            return judged(lambda: load_model(self.file), self._same)
        self.file.write_bytes(self._forged(draw))
        return judged(self._predict, lambda outcome: outcome)

    def _same(self, model: Model) -> str:
        weights = {**model.weights}
        if (
            model.plans != self.model.plans
            or model.trained_on != self.model.trained_on
            or model.measured.expected != self.model.measured.expected
            or weights.keys() != self.model.weights.keys()
            or not all(weights[n].equal(t) for n, t in self.model.weights.items())
        ):
            raise WrongError("another model was loaded, although its digests were not made again")
        return SAME

    def _forged(self, draw: random.Random) -> bytes:
        tensors, header = dict(self.tensors), self.header
        if draw.random() < 0.7:
            try:
                if isinstance(header := json.loads(mutated_json(header, draw)), dict):
                    return model_bytes(tensors, header)
            except (ValueError, RecursionError, TypeError):
                pass
            header = self.header
        for _ in range(draw.choice((1, 3))):
            name = draw.choice(list(tensors))
            tensors[name] = changed(tensors[name], draw)
        return model_bytes(tensors, header)

    def _predict(self) -> str:
        model = load_model(self.file)
        if not model.plans.modalities or "t1" not in model.modalities:
            return HARMLESS
        mask = model.predict(self.images)
        known = {value for value in model.plans.labels.declared.values() if isinstance(value, int)}
        if model.plans.labels.regions_class_order is None and not set(np.unique(mask)) <= known:
            raise WrongError(f"a mask with labels {np.unique(mask)[:5]}")
        return plain(model.trained_on)


def changed(tensor: Any, draw: random.Random) -> Any:
    """Return a tensor of other numbers, or of another form."""
    value = draw.choice((float("nan"), float("inf"), 1e38, -1e38, 0.0, 1e-45))
    made = tensor.clone()
    choice = draw.randrange(6)
    if choice == 0 and made.numel():
        made.flatten()[draw.randrange(made.numel())] = value if made.is_floating_point() else 1
        return made
    if choice == 1:
        whole = torch.full(made.shape, value if made.is_floating_point() else 1)
        return whole.to(made.dtype)  # too much for half precision becomes infinite
    if choice == 2:
        return made.flatten()
    if choice == 3:
        return made.to(draw.choice((torch.float16, torch.float64, torch.int32, torch.uint8)))
    if choice == 4:
        return made[:0] if made.ndim else made
    return -made


class InitialWeights:
    """A checkpoint of nnU-Net for ``--init``: weights of the run's own form, finite, or refused."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "checkpoint.pth"
        self.plans = small_plans()
        self.plans = dataclasses.replace(
            self.plans,
            network=dataclasses.replace(self.plans.network, tailored_width=1.0, shared_width=1.0),
        )
        self.content = _nnunet_checkpoint(self.plans)
        made = io.BytesIO()
        torch.save(self.content, made)
        self.good = made.getvalue()
        self.seen = folder / "ran"

    def attack(self, draw: random.Random) -> str:
        choice = draw.random()
        if choice < 0.2:
            self.file.write_bytes(mutated_bytes(self.good, draw))
        elif choice < 0.4:
            self._change_record(draw)
        elif choice < 0.5:
            self.file.write_bytes(self._code(draw))
        else:
            content = self._changed(draw)
            torch.save(content, self.file)
        taken = judged(
            lambda: start_from(self.file, self.plans, SETTINGS, Modalities()), self._sound
        )
        if self.seen.exists():
            raise WrongError("code of a checkpoint ran")
        return taken

    def _change_record(self, draw: random.Random) -> None:
        """Change the pickle or numbers within a whole archive, as whoever makes one can."""
        how = draw.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED,))
        part = draw.choice(("data.pkl",) * 8 + ("data/0", "byteorder"))
        with (
            zipfile.ZipFile(io.BytesIO(self.good)) as good,
            zipfile.ZipFile(self.file, "w", how) as made,
        ):
            for name in good.namelist():
                content = good.read(name)
                chosen = name.endswith(part)
                made.writestr(name, mutated_bytes(content, draw) if chosen else content)

    def _code(self, draw: random.Random) -> bytes:
        """Return a pickle that calls something."""
        calls = ("os\nsystem", "builtins\neval", "builtins\nexec", "subprocess\ncheck_output")
        module, name = draw.choice(calls).split("\n")
        what = f"touch {self.seen}" if "eval" not in name else f"open({str(self.seen)!r}, 'w')"
        code = f"c{module}\n{name}\n(V{what}\ntR.".encode()
        if draw.random() < 0.5:
            return code
        # within torch's archive, in place of its own pickle
        return self.good.replace(self.good[: draw.randrange(1, 40)], code, 1)

    def _changed(self, draw: random.Random) -> Any:
        content = {**self.content, "network_weights": dict(self.content["network_weights"])}
        choice = draw.randrange(6)
        weights = content["network_weights"]
        name = draw.choice(list(weights))
        if choice == 0:
            weights[name] = changed(weights[name], draw)
        elif choice == 1:
            weights[draw.choice(NAMES)] = weights.pop(name)
        elif choice == 2:
            weights[name] = draw.choice((
                torch.zeros(1).expand(10**6, 10**6), torch.eye(2).to_sparse(),
                torch.zeros(2, dtype=torch.complex64), torch.empty(2, device="meta"), 1, None,
                torch.zeros(1).expand(*weights[name].shape),
            ))  # fmt: skip
        elif choice == 3:
            args: Any = {**content["init_args"]}
            args["plans"] = {"configurations": {"2d": {"inherits_from": draw.choice(("2d", "x"))}}}
            content["init_args"] = args
        elif choice == 4:
            args = {**content["init_args"]}
            inner: dict[str, Any] = {"labels": {"background": 0, "lesion": 1}}
            inner["labels"] = inner
            args["dataset_json"] = inner
            content["init_args"] = args
        else:
            try:
                content["init_args"] = json.loads(mutated_json(content["init_args"], draw))
            except (ValueError, RecursionError):
                content["init_args"] = None
        return content

    def _sound(self, started: Any) -> str:
        state, start = started
        for name, tensor in state.weights.items():
            if not tensor.isfinite().all():
                raise WrongError(f"{name} is not finite")
        return plain(start)


def _nnunet_checkpoint(plans: Any) -> dict[str, Any]:
    arch = resolve_architecture(plans.configuration("2d")["architecture"]["arch_kwargs"])
    network = PlainConvUNet(2, num_classes=3, deep_supervision=False, **arch)
    return {
        "network_weights": network.state_dict(),
        "logging": {"lrs": [0.01], "mean_fg_dice": [np.float64(0.5)]},
        "init_args": {
            "plans": {"configurations": {"2d": {"spacing": [1.0, 1.0]}}},
            "configuration": "2d",
            "dataset_json": {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "lesion": 1, "core": 2},
            },
        },
    }


class RunFolder:
    """A run's folder: what is resumed is whole, of its plans, and of the same weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        plans = small_plans()
        run = Run(self.folder, plans, dataclasses.replace(SETTINGS, rounds=3), "0", {
            name: Registration(4, {"t1": 4, "t2": 2}, ["t1"]) for name in ("north", "south")
        })  # fmt: skip
        start_run(run)
        self.state = first_state(plans, SETTINGS)
        for number in (1, 2):
            state = dataclasses.replace(self.state, round=number)
            shown = SiteRound(0.5, {"lesion": 0.5, "core": None}, 10, 10, 1.0)
            save_round(run, state, {}, dict.fromkeys(("north", "south"), shown), 0.5, 1.0)
        dice = dict.fromkeys(("lesion", "core"), (1,) * 2 + (0,) * 18)
        save_measured(run, 2, Measured((SubsetDice(("t1",), dice),)), {})
        self.good = {
            file.relative_to(self.folder): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.suffix in (".json", ".safetensors")
        }
        self._sound(self._use())

    def attack(self, draw: random.Random) -> str:
        name = draw.choice(list(self.good))
        content, file = self.good[name], self.folder / name
        if file.suffix == ".safetensors":
            file.write_bytes(mutated_safetensors(content, draw))
        else:
            file.write_bytes(self._with_digest(mutated_json(json.loads(content), draw), draw))
        if name.name == "run.json" and draw.random() < 0.5:  # also what it falls back on
            for other in self.good:
                if other.name == "run.json":
                    (self.folder / other).write_bytes(file.read_bytes())
        try:
            return judged(self._use, self._sound)
        finally:
            for other, good in self.good.items():
                (self.folder / other).write_bytes(good)

    @staticmethod
    def _with_digest(text: bytes, draw: random.Random) -> bytes:
        """Make the record's own digest again, as whoever changes it on purpose does."""
        try:
            content = json.loads(text)
            if "sha256" in content and draw.random() < 0.9:
                rest = {name: value for name, value in content.items() if name != "sha256"}
                content["sha256"] = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
                return json.dumps(content).encode()
        except (ValueError, RecursionError, TypeError):
            pass
        return text

    def _use(self) -> Any:
        run = open_run(self.folder)
        load_measured(run, len(run.history))
        progress_table(run)
        choose_round(run, "best")
        return run, last_state(run, optimizers=False)[0]

    def _sound(self, resumed: Any) -> str:
        run, state = resumed
        if state.weights.keys() != self.state.weights.keys():
            raise WrongError("weights of another network were resumed")
        if not all(state.weights[n].equal(t) for n, t in self.state.weights.items()):
            raise WrongError("other weights were resumed")
        return plain((run.settings, run.registrations, run.history, run.dice))


class CaseOnDisk:
    """A preprocessed case: what opens has the numbers that were stored."""

    def __init__(self, folder: Path) -> None:
        site = stored_site(folder, "north", [("t1", "t2")], small_plans())
        self.case = site.training[0]
        self.arrays = self.case.images[:], self.case.labels[:]
        self.files = {
            file: file.read_bytes()
            for file in sorted(self.case.folder.iterdir())
            if file.name.startswith(f"{self.case.name}.")
        }

    def attack(self, draw: random.Random) -> str:
        file = draw.choice(list(self.files))
        good = self.files[file]
        if file.suffix == ".json":
            file.write_bytes(mutated_json(json.loads(good), draw))
        else:
            # the header; numbers carry no sum of their own
            file.write_bytes(mutated_bytes(good, draw, 120))
        try:
            return judged(lambda: open_case(self.case.folder, self.case.name), self._sound)
        finally:
            file.write_bytes(good)

    def _sound(self, case: PreprocessedCase) -> str:
        for places in case.class_locations.values():
            if len(places) and (places.max(axis=0) >= (1, *case.labels.shape[1:])).any():
                raise WrongError("a class lies outside of the image")
        return plain((case.modalities, case.spacing, case.planned, case.labelled))
