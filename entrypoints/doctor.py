"""``mixmfl_doctor``: report this machine, and whether a plan and a model fit it."""

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl import __version__
from mixmfl.core import devices
from mixmfl.core.errors import MixmflError
from mixmfl.core.text import printable

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.training.hardware import Compute, Package

DESCRIPTION = """\
Print what a bug report should contain, and what prevents mixmfl from working here: versions of the
libraries, the device and its memory, free disk, the registered model. With -w WORK also an estimate
of whether training its plans fits; with a model, given or registered, the time for a patch and
where it comes from; of a run in folds each of its models.

ok: the check passed; NO: it did not; a line without either has nothing that could fail.
Exit code: 0 all checks passed, 1 a line says NO, 2 nothing could be checked."""

EXTRAS = {
    "brain": "--brain-only, which removes skulls",
    "curves": "curves of training for TensorBoard",
    "dicom-seg": "masks, volumes and maps as DICOM (mixmfl_predict --dicom-seg)",
    "mlflow": "mixmfl_train_federated --track mlflow",
    "network": "a federation over a network (mixmfl_site, --kit)",
    "privacy": "masked rounds and differential privacy",
    "wandb": "mixmfl_train_federated --track wandb",
}
"""What each extra is for."""

Line = tuple[str, bool | None]
"""A line, and whether its check passed; None: nothing is checked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_doctor", DESCRIPTION)
    parser.add_argument("-w", "--work", type=_paths.WORK, help="output of mixmfl_plan_preprocess")
    parser.add_argument(
        "-m", "--model", type=_paths.MODEL, help="default: the registered one, if any"
    )
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.training.hardware import compute, free_gb, packages

    if options.work is not None and not (options.work / "plans.json").is_file():
        raise MixmflError(f"{options.work}: holds no plans.json; mixmfl_plan_preprocess makes it")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    print(f"mixmfl {__version__}, Python {platform.python_version()}, {system}")
    here = compute(devices.find_device(options.device))
    well = True
    # a library that two extras require is listed once
    for line, fine in dict.fromkeys(
        [
            *_libraries(packages()),
            (_device(here), True),
            *_compiled_parts(here),
            (f"disk {Path.cwd()}: {free_gb(Path.cwd()):.0f} GB free", True),
            *(_plans(options.work, here) if options.work else ()),
            *_model(options.model, here),
        ]
    ):
        well = well and fine is not False
        mark = "" if fine is None else "ok" if fine else "NO"
        print(printable(f"{mark:4}{line}"))
    return 0 if well else _runner.SOME_FAILED


def _libraries(packages: "Sequence[Package]") -> Iterator[Line]:
    for each in packages:
        what = f"{each.name} {each.found or 'is missing'}"
        if each.fits:
            yield what, True
        elif each.found or not each.extra:
            yield f"{what}; {each.required} is needed", False
    for extra in sorted({each.extra for each in packages if each.extra and not each.found}):
        yield f"without {EXTRAS[extra]}: pip install 'mixmfl[{extra}]' adds it", None


def _device(here: "Compute") -> str:
    bf16 = "with" if here.bf16 else "without"
    memory = f"{here.total_gb:.1f} GB of memory, {here.free_gb:.1f} free"
    cores = f"{devices.cores()} CPU cores"
    return f"device {here.device}: {here.name}, {memory}, {bf16} bf16; {cores}"


def _compiled_parts(here: "Compute") -> Iterator[Line]:
    from mixmfl.networks import norms

    if here.device.type == "cpu" and not norms.compiled():
        why = "as mixmfl was installed without a C compiler: a CPU takes up to twice as long"
        yield f"without the compiled parts, {why}; install GCC or clang, and mixmfl again", None


def _plans(work: Path, here: "Compute") -> Iterator[Line]:
    from mixmfl.planning.federation_plans import sites_folder
    from mixmfl.planning.plans import Plans
    from mixmfl.training.hardware import needs_of_training

    plans = Plans.load(work / "plans.json")
    sites = len([folder for folder in sites_folder(work).glob("*") if folder.is_dir()])
    for name in plans.configurations:
        for need in needs_of_training(plans, name, sites, here, work):
            numbers = f"about {need.needed_gb:.1f} GB, {need.there_gb:.1f} GB are free"
            yield f"{need.what}: {numbers}", need.fits


def _model(named: Path | None, here: "Compute") -> Iterator[Line]:
    from mixmfl.inference.default_model import registered_model
    from mixmfl.inference.model_file import load_model
    from mixmfl.inference.model_folder import describe_model, folder_notes, model_files
    from mixmfl.inference.origin import origin_of
    from mixmfl.training.hardware import time_patch

    if named is None and not (_runner.home() / "model.json").is_file():
        yield f"no model is registered in {_runner.home()}; mixmfl_use_model registers one", None
        return
    try:
        path = named or registered_model(_runner.home())
        files, notes = model_files(path), folder_notes(path)
    except MixmflError as error:
        yield str(error), False
        return
    if len(files) > 1:
        yield f"model {describe_model(path)}; a case takes the time of all of them", None
    origins = []
    for file in files:
        try:
            model = load_model(file, here.device)
            seconds = time_patch(model)
        except MixmflError as error:
            yield str(error), False
            continue
        size = "x".join(map(str, model.plans.configuration(model.configuration)["patch_size"]))
        held = ", ".join(model.modalities)
        time = f"a patch of {size} takes {seconds:.2g} s on {here.device}"
        yield f"model {file}: {held}; {time}", True
        origins.append(origin_of(model))
    for heading in origins[0].facts if origins else ():
        texts = dict.fromkeys(origin.facts[heading] for origin in origins)
        yield f"  {heading}: {'; '.join(texts)}", None
    for line in dict.fromkeys([*(each.alarm for each in origins if each.alarm), *notes]):
        yield f"  {line}", None


if __name__ == "__main__":
    sys.exit(main())
