"""What people expect of every command: a list, a version, completion, colours, a doctor."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from mixmfl.entrypoints import _runner, doctor, network_demo, train_federated
from small import LABELS, MODALITIES, small_case, small_plans

from mixmfl import __main__ as door
from mixmfl import __version__
from mixmfl.core import commands
from mixmfl.core.files import write_json
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import save_model
from mixmfl.networks import norms
from mixmfl.planning import nnunet_planner
from mixmfl.planning.fingerprint import fingerprint_case, merge_fingerprints
from mixmfl.planning.nonzero import nonzero_box
from mixmfl.planning.plans import load_preset
from mixmfl.training import hardware

Command = Callable[..., int]
Said = pytest.CaptureFixture[str]
SETTINGS = RunSettings("2d", seed=0, rounds=2, local_steps=2, learning_rate=1e-2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    plans, file = small_plans(), tmp_path / "model.safetensors"
    state = first_state(plans, SETTINGS)
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)))
    return file


# --- python -m mixmfl


def test_the_package_alone_lists_every_command_with_what_it_does(capsys: Said) -> None:
    assert door.main([]) == 0
    listed = capsys.readouterr().out
    for name in commands.commands():
        assert f"\n  {name.removeprefix('mixmfl_')} " in listed
    assert "compare masks with references." in listed
    assert "`" not in listed  # as docstrings have them


def test_the_package_runs_a_command_by_its_short_name(tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "here"
    out.mkdir()
    (out / "note.txt").write_text("mine")
    assert door.main(["demo", "-o", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"mixmfl_demo: {out}: holds files")


@pytest.mark.parametrize("word", [name.removeprefix("mixmfl_") for name in commands.commands()])
def test_every_command_tells_its_version(word: str, capsys: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        door.main([word, "--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mixmfl_{word} {__version__}\n"


def test_python_runs_the_package_as_it_is_documented_and_nothing_of_the_current_folder(
    tmp_path: Path,
) -> None:
    for name in ("mixmfl.py", "argparse.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('run from the current folder')")
    documented = set(re.findall(r"python (.*?)-m mixmfl", Path("docs/commands.md").read_text()))
    (options,) = documented
    done = subprocess.run(
        [sys.executable, *options.split(), "-m", "mixmfl", "--version"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"mixmfl {__version__}\n")


# --- completion


@pytest.mark.parametrize("shell", door.SHELLS)
def test_what_a_shell_evaluates_names_every_command(shell: str, capsys: Said) -> None:
    assert door.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in commands.commands())


def test_a_shell_completes_a_commands_options(tmp_path: Path) -> None:
    """Ask as argcomplete's shell code does: in variables, answered in a file."""
    line, answer = "mixmfl_predict --reg", tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }
    command = Path(sys.executable).with_name("mixmfl_predict")
    subprocess.run([command], env={**os.environ, **asked}, check=True, timeout=300)
    assert answer.read_text(encoding="utf-8").split() == ["--register"]


# --- colours


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Return what trouble looks like on a terminal."""
    pty = pytest.importorskip("pty", reason="there are pseudo-terminals on POSIX systems only")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            _runner.complain("mixmfl_any", "went wrong")
            shown = ""
            while not shown.endswith("\n"):
                shown += os.read(ours, 10_000).decode()
        return shown
    finally:
        os.close(ours)


def test_trouble_is_coloured_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    assert on_a_terminal(monkeypatch) == "\x1b[1;31mmixmfl_any\x1b[0m: went wrong\r\n"
    _runner.complain("mixmfl_any", "went wrong")
    assert capsys.readouterr().err == "mixmfl_any: went wrong\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
def test_helpers_of_a_command_take_no_module_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit(7)")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def work(_: object) -> int:
        # as multiprocessing starts them
        helper = [sys.executable, "-S", "-c", "import torch"]
        return subprocess.run(helper, cwd=tmp_path, capture_output=True, check=False).returncode

    assert _runner.run(_runner.parser("mixmfl_any", "does"), [], work) == 1  # there is none


def test_a_command_follows_no_matplotlibrc_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 999999")  # up to 3.10 it can run code
    command = """if True:
        from mixmfl.entrypoints import _runner

        def work(options):
            import os, matplotlib
            print(matplotlib.rcParams["savefig.dpi"], os.path.exists("matplotlibrc"))
            return 0

        _runner.run(_runner.parser("mixmfl_any", "does"), [], work)
    """
    ran = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "figure True\n"


def test_a_bar_shows_any_name_of_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with _runner.bars() as report:
        report("site a[/b]", 0, 1)


def test_where_no_bar_is_drawn_a_line_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    now = iter([0.0, 59.0, 60.0, 60.0, 70.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now, 70.0))
    with _runner.bars() as report:
        for done in (1, 2, 3):
            report("trainings", done, 9)
    assert capsys.readouterr().err == "trainings: 2 of 9\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_a_terminal(monkeypatch, NO_COLOR="1")
    assert shown == "\x1b[1mmixmfl_any\x1b[0m: went wrong\r\n"  # bold, no colour


# --- the doctor


def test_the_doctor_finds_this_machine_well(
    command: Command, model: Path, tmp_path: Path, capsys: Said
) -> None:
    work = tmp_path / "work"
    small_plans().save(work / "plans.json")
    (work / "sites" / "north").mkdir(parents=True)
    assert command("mixmfl_doctor", "-w", work, "-m", model, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"mixmfl {__version__}, Python 3.")
    assert all(line.startswith(("ok  ", "    ")) for line in lines[1:])
    assert len(set(lines)) == len(lines)  # cryptography, say, which two extras ask for
    text = "\n".join(lines)
    assert f"torch {torch.__version__}" in text
    assert "memory to train 2d on cpu: about 1.0 GB" in text  # a tiny network: the libraries
    assert f"model {model}: flair, t1, t2; a patch of 16x16 takes " in text
    assert "\n      anatomy: not stated" in text


def test_the_doctor_looks_at_every_model_of_a_run(
    command: Command, model: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "packages", list)
    run, files = tmp_path / "run", []
    for fold in ("0", "1"):
        files.append(run / f"fold_{fold}" / "model.safetensors")
        files[-1].parent.mkdir(parents=True)
        shutil.copy(model, files[-1])
    record = {"configuration": "2d", "folds": ["0", "1"], "rounds": {"0": 1, "1": 1}}
    write_json(run / "cross_validation.json", {**record, "lengths": {"0": 1, "1": 2}})
    assert command("mixmfl_use_model", run) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"mixmfl_predict uses {run}, the mean of 2 models\nfolds were trai")
    assert command("mixmfl_doctor", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert f"\n    model {run}, the mean of 2 models; a case takes" in printed
    for file in files:
        assert f"\nok  model {file}: flair, t1, t2; a patch" in printed
    assert printed.count("anatomy: not stated\n") == 1  # what all share is said once
    assert "\n      folds were trained for unequal numbers of rounds: fold 0 for 1" in printed
    assert command("mixmfl_doctor", "-m", run / "fold_1", "--device", "cpu") == 0
    assert f"\nok  model {files[1]}: " in capsys.readouterr().out


def test_the_doctor_says_no_and_why(
    command: Command, model: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    small_plans().save(work / "plans.json")
    found = [
        hardware.Package("torch", ">=2.4", "", "2.3.0", False),
        hardware.Package("highdicom", ">=0.25", "dicom-seg", "", False),
    ]
    monkeypatch.setattr(hardware, "packages", lambda: found)
    small = hardware.Compute(torch.device("cpu"), "abacus", 2.0, 0.5, False)
    monkeypatch.setattr(hardware, "compute", lambda _: small)
    model.write_bytes(b"cut off")
    with norms.by_torch():
        assert command("mixmfl_doctor", "-w", work, "-m", model, "--device", "cpu") == 1
    printed = capsys.readouterr().out
    assert (
        "\n    without the compiled parts, as mixmfl was installed without a C compiler" in printed
    )
    assert "\nNO  torch 2.3.0; >=2.4 is needed\n" in printed
    assert (
        "\n    without masks, volumes and maps as DICOM (mixmfl_predict --dicom-seg): " in printed
    )
    assert "pip install 'mixmfl[dicom-seg]' adds it\n" in printed
    assert "\nok  device cpu: abacus, 2.0 GB of memory, 0.5 free, without bf16; " in printed
    assert "\nNO  memory to train 2d on cpu: about 1.0 GB, 0.5 GB are free\n" in printed
    assert f"\nNO  {model}: is no model file (" in printed


def test_the_doctor_without_plans_or_model(command: Command, tmp_path: Path, capsys: Said) -> None:
    assert command("mixmfl_doctor", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "    no model is registered in " in printed
    assert "mixmfl_use_model registers one" in printed
    assert command("mixmfl_doctor", "-w", tmp_path) == 2
    assert "holds no plans.json; mixmfl_plan_preprocess makes it" in capsys.readouterr().err


def test_what_pyproject_asks_for_is_here() -> None:
    found = {each.name: each for each in hardware.packages()}
    assert {each.extra for each in found.values()} - {""} <= set(doctor.EXTRAS)
    assert found["torch"].required == "!=2.9.*,>=2.4"
    assert found["nvflare"].extra == "network"
    assert "pytest" not in found  # who uses mixmfl needs no tools
    assert found["deepbet"].extra == "brain"
    assert found["tensorboard"].extra == "curves"
    left_out = ("brain", "curves", "mlflow", "wandb")  # by an installation for development
    assert all(each.fits for each in found.values() if each.extra not in left_out)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_plan_for_so_much_memory_is_counted_as_that(configuration: str) -> None:
    preset = load_preset("default")
    planner = dataclasses.replace(preset.planner, memory_gb=2.0)
    images, labels = small_case(("t1", "t2"), 0, (96, 160, 144))
    box = nonzero_box(list(images.values()))
    fingerprint = fingerprint_case(images, labels, (1.0, 1.0, 1.0), box)
    plans = nnunet_planner.plan(
        merge_fingerprints([fingerprint] * 40), ["t1", "t2"], LABELS, planner, preset.network
    )
    counted = nnunet_planner.training_memory_gb(plans, configuration, 3, preset.network)
    # patches shrink in steps, and batches are whole cases
    assert 1.4 < counted < 2.4


def test_a_gpu_is_told_as_its_driver_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "abacus")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    here = torch.device("cuda:1")
    assert hardware.compute(here) == hardware.Compute(here, "abacus", 8.0, 3.0, False)


def test_training_needs_twice_the_features_on_a_cpu_and_four_times_the_weights(
    tmp_path: Path,
) -> None:
    plans = small_plans(rounds=10, keep_every=5)
    features = nnunet_planner.training_memory_gb(plans.nnunet, "2d", 3, plans.network)
    numbers = sum(t.numel() for t in first_state(plans, SETTINGS).weights.values())
    here = hardware.Compute(torch.device("cpu"), "", 8, 8, False)
    memory, disk = hardware.needs_of_training(plans, "2d", 3, here, tmp_path / "not" / "there")
    assert memory.needed_gb == pytest.approx(1 + 2 * features + 4 * 4 * numbers / 1e9)
    # 10 / 5 kept for good, the last two and the best; two moments of 3 sites and 2 rounds
    assert disk.needed_gb == pytest.approx((5 + 12) * 4 * numbers / 1e9)
    assert disk.there_gb > 0
    gpu = dataclasses.replace(here, device=torch.device("cuda"))
    memory, _ = hardware.needs_of_training(plans, "2d", 3, gpu, tmp_path)
    assert memory.needed_gb == pytest.approx(features + 4 * 4 * numbers / 1e9)


def test_a_need_fits_where_there_is_enough() -> None:
    assert hardware.Need("disk", 1.0, 1.0).fits
    assert not hardware.Need("disk", 1.1, 1.0).fits


# --- interruptions


def interrupt(*_: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("holds", "options", "advice"),
    [
        ((".lock",), (), "nothing was begun: run the same command again\n"),
        (("run.json",), (), "are kept: run the same command again with --resume to continue\n"),
        (("run.json",), ("--resume",), "are kept: run the same command again to continue\n"),
    ],
)
def test_an_interrupted_training_says_what_continues_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    capsys: Said,
    holds: Sequence[str],
    options: Sequence[str],
    advice: str,
) -> None:
    for file in ("work/plans.json", *(f"run/{name}" for name in holds)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(train_federated, "_work", interrupt)
    folders = ("-i", tmp_path / "work", "-o", tmp_path / "run")
    assert command("mixmfl_train_federated", *folders, *options) == 130
    assert capsys.readouterr().err.endswith(advice)


def test_a_command_that_needs_an_empty_folder_does_not_say_that_it_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, capsys: Said
) -> None:
    monkeypatch.setattr(network_demo, "_work", interrupt)
    assert command("mixmfl_network_demo", "-o", tmp_path / "demo") == 130
    assert "cannot be continued" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_ends_a_command_as_ctrl_c_does(name: str, capsys: Said) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)

    def work(_: object) -> int:
        os.kill(os.getpid(), number)
        time.sleep(60)
        return 0

    assert _runner.run(_runner.parser("mixmfl_any", "does"), [], work) == 130
    assert "mixmfl_any: interrupted; completed work is kept" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_a_command_within_another_that_is_interrupted_interrupts_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(doctor, "_work", interrupt)
    parser = _runner.parser("mixmfl_any", "does")
    assert _runner.run(parser, [], lambda _: _runner.run_shown("mixmfl_doctor")) == 130
    assert "mixmfl_any: interrupted; completed work is kept" in capsys.readouterr().err
