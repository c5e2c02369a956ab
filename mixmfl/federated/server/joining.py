"""A modality that joins a run: what its encoder starts from."""

from mixmfl.federated.server.changes import Change
from mixmfl.federated.server.run import Run
from mixmfl.networks.initial_weights import origin_of, source_of, take_weights
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State


def new_modalities(run: Run) -> list[Change]:
    """Return the modalities that the next round trains for the first time, and from what.

    Args:
        run: The run, with the sites of its next round.
    """
    if not run.history:  # in a new run all encoders start alike
        return []
    trained, counts = _trained(run), run.modality_cases
    held = {m for r in run.registrations.values() for m, n in r.modality_cases.items() if n}
    return [
        Change(len(run.history), f"modality {name}", 0, counts[name], origin_of(name, trained))
        for name in run.plans.modalities
        if name in held - trained
    ]


def start_new_modalities(run: Run, weights: State) -> State:
    """Return the weights with encoders for the modalities that join with the next round.

    Such an encoder, and its slot in the fusion, start from the nearest modality that was trained,
    or from the shared encoder, rather than at random.

    Args:
        run: The run; ``new_modalities`` are among its changes.
        weights: Weights after its last round; left as they are.
    """
    joined = {
        change.what.removeprefix("modality ")
        for change in run.changes
        if change.origin and change.after == len(run.history)
    }
    if not joined:
        return weights
    plans = run.plans
    trained = tuple(sorted(_trained(run)))
    source = source_of(plans, run.settings.configuration, trained, weights)
    started, _ = take_weights(weights, plans.modalities, source.heads, source)
    changed = {"fusion", "encoder", *(f"tailored.{name}" for name in joined)}
    return {n: started[n] if block_of(n) in changed else tensor for n, tensor in weights.items()}


def _trained(run: Run) -> set[str]:
    """Return the modalities that rounds have trained, or the network that the run began with."""
    parts = run.start.parts if run.start is not None else ()
    return run.trained_modalities | {
        part.origin for part in parts if part.name == f"tailored.{part.origin}" and part.taken
    }
