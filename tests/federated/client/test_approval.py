"""A hospital approves of jobs, by a policy or a person; nothing of patients leaves before."""

import dataclasses
import getpass
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixmfl.core.errors import PrivacyError
from mixmfl.federated.client import approval
from mixmfl.federated.client.approval import Approval, Job, Policy, answer_job, waiting
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.state import Minimum

PLANS = "ab" * 32
RUN = Job("cd" * 32, {"job": "training", "run": "abc"}, 20, True, PLANS, 4.0)
STATISTICS = Job("ef" * 32, {"job": "statistics for a plan"})
PREPROCESSING = Job("ab" * 32, {"job": "preprocessing"}, plans=PLANS)


def policy(folder: Path, **changes: Any) -> Path:
    content = {"until": "2999-01-31", "rounds": 20, "masked": True, "epsilon": 4, "plans": [PLANS]}
    file = folder / "policy.json"
    file.write_text(json.dumps({**content, **changes}))
    return file


def test_a_policy_covers_what_is_within_it(tmp_path: Path) -> None:
    assert Policy.load(policy(tmp_path)).against(RUN) == []
    assert Policy.load(policy(tmp_path)).against(STATISTICS) == []
    other = dataclasses.replace(PREPROCESSING, plans="0" * 64)  # of which a digest is not known yet
    assert Policy.load(policy(tmp_path)).against(other) == []
    runs_alone = Policy.load(policy(tmp_path, planning=False))
    assert runs_alone.against(PREPROCESSING) == []
    assert runs_alone.against(other) == [f"the plans {'0' * 64} are not those that it names"]
    file = policy(tmp_path)
    assert Approval(file).decide(RUN, tmp_path / "jobs") == f"the policy {file}"
    (record,) = (tmp_path / "jobs").iterdir()
    assert json.loads(record.read_text())["facts"] == RUN.facts


@pytest.mark.parametrize(
    ("job", "changes", "reason"),
    [
        (RUN, {"until": "2001-01-31"}, "it ended on 2001-01-31"),
        (STATISTICS, {"until": "2001-01-31"}, "it ended on 2001-01-31"),
        (RUN, {"rounds": 19}, "rounds 20, and it approves of 19"),
        (STATISTICS, {"planning": False}, "it approves of no statistics"),
        (dataclasses.replace(RUN, masked=False), {}, "the run is not masked"),
        (
            dataclasses.replace(RUN, epsilon=4.1),
            {},
            "this site trains with budget 4.1, and it needs 4 at",
        ),
        (
            dataclasses.replace(RUN, epsilon=None),
            {},
            "this site trains with no privacy budget, and",
        ),
        (
            PREPROCESSING,
            {"planning": False, "rounds": 0},
            "it approves of no run, and so of no",
        ),
        (PREPROCESSING, {"until": "2001-01-31"}, "it ended on 2001-01-31"),
        (RUN, {"plans": ["0" * 64]}, f"the plans {PLANS} are not those that it names"),
    ],
)
def test_what_is_beyond_a_policy_is_refused_and_said(
    tmp_path: Path, job: Job, changes: dict[str, Any], reason: str
) -> None:
    file = policy(tmp_path, **changes)
    with pytest.raises(PrivacyError, match=f"does not cover this job: {reason}"):
        Approval(file).decide(job, tmp_path / "jobs")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"until": "2026-02-30"}, "there is no day 2026-02-30"),
        ({"until": "soon"}, "until: is 'soon'"),
        ({"rounds": "20"}, "rounds: is '20'"),
        ({"epsilom": 1}, "epsilom"),
        ({"plans": ["short"]}, "plans"),
        ({"limits": {"querys": 1}}, "limits: .*querys"),
        ({"limits": {"queries": -1}}, "limits: queries: is -1"),
        ({"limits": []}, "limits"),
    ],
)
def test_a_damaged_policy_approves_of_nothing(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(PrivacyError, match=why):
        Approval(policy(tmp_path, **changes)).decide(RUN, tmp_path / "jobs")
    with pytest.raises(PrivacyError, match=r"none\.json"):
        Approval(tmp_path / "none.json").decide(RUN, tmp_path / "jobs")


def test_of_a_policy_and_options_the_stricter_limit_holds(tmp_path: Path) -> None:
    options, minimum = Limits(queries=7, training_cases=1, no_loss=True), Minimum(3, 50)
    assert Approval().within(options, minimum) == (options, minimum)
    assert Approval(policy(tmp_path)).within(options, minimum) == (options, minimum)
    stricter = {"masked_only": True, "rounds": 8, "queries": 9, "training_cases": 4}
    file = policy(tmp_path, limits=stricter, minimum={"cases": 2, "voxels": 60})
    assert Approval(file).within(options, minimum) == (
        Limits(masked_only=True, rounds=8, queries=7, training_cases=4, no_loss=True),
        Minimum(3, 60),
    )


@pytest.mark.parametrize("ask", [False, True])
def test_a_policy_that_ends_or_is_changed_ends_the_run(tmp_path: Path, ask: bool) -> None:
    jobs = tmp_path / "jobs"
    approval = Approval(policy(tmp_path), ask=ask)
    approval.decide(RUN, jobs)
    approval.check_still(RUN, jobs)
    for changes in ({"until": "2001-01-31"}, {"rounds": 0}, {"plans": ["0" * 64]}):
        policy(tmp_path, **changes)
        with pytest.raises(PrivacyError, match="does not cover this job any more: "):
            approval.check_still(RUN, jobs)
    if ask:
        answered(jobs, lambda: approval.decide(RUN, jobs), yes=True)
        approval.check_still(RUN, jobs)  # a person approved of it


def answered(folder: Path, decide: Callable[[], str], *, yes: bool) -> str:
    """Have a person answer as soon as the job waits, and return what ``decide`` did."""

    def person() -> None:
        while not (found := list(waiting(folder))):
            time.sleep(0.01)
        ((file, facts),) = found
        assert facts == RUN.facts
        answer_job(file, yes)

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    try:
        return decide()
    finally:
        thread.join(timeout=10)


def test_a_person_is_asked_about_what_no_policy_covers_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "officer")
    jobs = tmp_path / "jobs"
    # approved by a policy that holds no more: this is no answer of a person
    Approval(policy(tmp_path)).decide(RUN, jobs)
    asked = Approval(policy(tmp_path, rounds=3, planning=False, plans=["0" * 64]), ask=True)
    assert answered(jobs, lambda: asked.decide(RUN, jobs), yes=True) == "officer"
    assert asked.decide(RUN, jobs) == "officer"  # as when the run is resumed
    longer = dataclasses.replace(RUN, digest="cd" * 31 + "00")  # which begins as the other
    with pytest.raises(PrivacyError, match=r"refused this job\. It was officer; remove"):
        answered(jobs, lambda: asked.decide(longer, jobs), yes=False)
    with pytest.raises(PrivacyError, match=r"refused this job\. It was officer; remove"):
        asked.decide(longer, jobs)
    assert asked.decide(RUN, jobs) == "officer"
    monkeypatch.setattr(approval, "_WAIT_SECONDS", 0.0)
    with pytest.raises(PrivacyError, match="nobody at the hospital answered whether"):
        asked.decide(PREPROCESSING, jobs)
