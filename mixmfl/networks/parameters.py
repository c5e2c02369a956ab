"""A network's parameters as tensors by name, and the block that each belongs to."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from mixmfl.core.tensor_store import form_of
from mixmfl.networks.prototypes import State


@lru_cache(2**12)  # asked for every tensor of every site
def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: ``tailored.<modality>`` or its first word."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "tailored" else first


def network_state(network: nn.Module) -> State:
    """Return a copy of the parameters, on the CPU, each under one name."""
    # not state_dict(): nnU-Net's blocks register every convolution under two names
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in network.named_parameters()
    }


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into the network by name; those that ``state`` lacks stay as they are.

    Raises:
        KeyError: A name is no parameter of the network.
        RuntimeError: A shape does not fit.
    """
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a network, which may be an outline, by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}


def check_state(
    expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], *, whole: bool = True
) -> None:
    """Check that a state has a network's parameters and no others; none is read for it.

    Args:
        expected: The shapes of the planned network's parameters.
        state: The parameters to check.
        whole: Whether it must have all parameters.

    Raises:
        ValueError: A parameter is missing, is not the network's, or has another shape or type.
    """
    if whole and (missing := sorted(expected.keys() - state.keys())):
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    if unplanned := sorted(state.keys() - expected.keys()):
        raise ValueError(f"{len(unplanned)} tensors are not planned, such as {unplanned[0][:80]!r}")
    check_forms(state, {name: expected[name] for name in state})


def check_forms(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors have these shapes and are of float32; none of them is read.

    Raises:
        ValueError: One has another shape or type.
    """
    for name, needed in shapes.items():
        if (form := form_of(state, name)) != (needed, torch.float32):
            raise ValueError(
                f"{name} has the shape {form[0]} of {form[1]}, {needed} of float32 is needed"
            )


def assign_parameters(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the network these parameters in place of its own; they cannot be trained.

    Each is taken from ``state`` once, and not copied. So the network's own parameters may be on the
    device ``meta``, where they have a shape and no memory.

    Raises:
        ValueError: A parameter is missing, is not the network's, or has another shape or type.
    """
    check_state(shapes_of(network), state)
    for name, _ in list(network.named_parameters()):
        module, _, parameter = name.rpartition(".")
        adopted = nn.Parameter(state[name], requires_grad=False)
        network.get_submodule(module).register_parameter(parameter, adopted)
