"""What can be optimised in a network? Layers that keep no input, blocks with fused forwards, modules to run again.

Fused forwards are compared with the blocks' own, and modules that run again in backward with running once, on examples.
Nothing here changes the network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...errors import PlanError
from ...families import Recognised, find_blocks, find_containers, find_fused, get_block, has_region_masks, recognise
from ...families.quirks import DIFFERENTIABLE_IN_TRAINING_ONLY
from ...frozen import layers
from ...ports.base import SLOT, base_modules, original_class
from ..attachment.copies import twin_of
from ..attachment.record import Memory, Optimised
from ..attachment.specialise import facets_of, set_facets
from ..observation.blocks import CLOSE, apart, configuration, fused_problem
from ..observation.describe import facts_of
from ..observation.examples import Example
from ..observation.generators import kept_generators
from ..observation.outputs import float_tensors
from ..observation.probe import probe_places
from ..observation.trial import Trial


def find_optimised(model: object, root: nn.Module, memory: Memory, example: Any) -> Optimised:
    """Return what `lowpeft.optimize` would change.

    Args:
        model: The network as the user passed it.
        root: Its root.
        memory: What blocks keep for backward.
        example: Arguments of one call of the network; None for random images.

    Raises:
        PlanError: `memory` is "checkpoint", and the network has no blocks or stages that can run again.
    """
    recognised = recognise(root)
    fused, notes = _fused(root, recognised) if recognised else ({}, [])
    blocks = frozenset(fused).union(find_blocks(root, recognised) if recognised else ())
    if memory == "checkpoint" and not fused:
        blocks = _stages(model, root, recognised, None if example is None else Example.of(example))
    lean = frozenset(path for path, module in base_modules(root) if _is_lean(module))
    return Optimised(memory=memory, blocks=blocks, fused=fused, lean=lean, notes=tuple(notes))


def _is_lean(module: nn.Module) -> bool:
    cls = original_class(module)
    return "forward" not in module.__dict__ and (
        layers.is_convolution(module, cls) or layers.is_batch_norm(module, cls)
    )


def _fused(root: nn.Module, recognised: Recognised) -> tuple[dict[str, str], list[str]]:
    """Return the block forward of each block that can be fused, by path, and a note on blocks that cannot."""
    modules = dict(base_modules(root))
    if (odd := next((path for path, module in modules.items() if not has_region_masks(module)), None)) is not None:
        return {}, [
            f"no block is fused: the masks of shifted windows that {odd or 'the network'} computes are not Swin's"
        ]
    problems: dict[tuple[object, ...], str | None] = {}
    found: dict[str, str] = {}
    refused: dict[str, list[str]] = {}
    for path, family_block in find_fused(root, recognised):
        module = modules[path]
        name = facets_of(module).block or family_block
        key = configuration(module, name)
        if key not in problems:
            problems[key] = fused_problem(module, get_block(name))
        problem = problems[key]
        if problem is None:
            found[path] = name
        else:
            refused.setdefault(problem, []).append(path)
    return found, [f"{len(p)} blocks are not fused ({p[0]}, …): {problem}" for problem, p in refused.items()]


# --- modules that run again ------------------------------------------------------------------------------------------


def _stages(model: object, root: nn.Module, recognised: Recognised | None, example: Example | None) -> frozenset[str]:
    """Return the paths of the stages that run as modules of their own: those of the family, or those of a run.

    Raises:
        PlanError: There are none, or the network's gradient changes when they run again in backward.
    """
    trial = Trial(root, example, facts_of(model))
    containers = find_containers(root, recognised) if recognised else probe_places(trial).containers
    stages = [path for path, (_, block) in containers.items() if block is None] or [*containers]
    smallest = Trial(root, example, facts_of(model)).running_example()
    called = _called(root, smallest)
    paths = frozenset(p for stage in stages for p in _outermost(root, stage, called))
    if not paths:
        raise PlanError(f"{original_class(root).__name__} has no stages that run as modules of their own")
    _check_repeated(root, paths, smallest)
    return paths


def _called(root: nn.Module, example: Example) -> set[str]:
    """Return the paths of the modules that are called in one run of a copy."""
    twin, called = twin_of(root), set[str]()
    for path, module in base_modules(twin):
        module.register_forward_pre_hook(lambda module, args, path=path: called.add(path))
    with torch.no_grad(), kept_generators(root):
        example.call(twin)
    return called


def _outermost(root: nn.Module, path: str, called: set[str]) -> list[str]:
    """Return the path of a module that was called; else of the outermost modules in it that were."""
    if path in called:
        return [path]
    children = [f"{path}.{name}" for name, _ in root.get_submodule(path).named_children() if name != SLOT]
    return [found for child in children for found in _outermost(root, child, called)]


def _check_repeated(root: nn.Module, paths: frozenset[str], example: Example) -> None:
    """Raise if the gradient at the input changes when these modules run again in backward.

    Raises:
        PlanError: It changes, or the network cannot run with gradients.
    """
    plain, other = twin_of(root), twin_of(root)
    for path in paths:
        set_facets(other.get_submodule(path), memory="checkpoint")
    try:
        difference = apart(_input_gradients(other, example), _input_gradients(plain, example))
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(
            f'the network does not run with memory="checkpoint": {type(error).__name__}: {error}'
        ) from error
    if difference > CLOSE:
        raise PlanError(
            f"gradients differ by {difference:.2g} of their size when {len(paths)} stages ({min(paths)}, …) run again "
            "in backward: the network does not compute the same twice"
        )


def _input_gradients(network: nn.Module, example: Example) -> list[Tensor]:
    """Return the gradients of a network's inputs for a fixed random gradient of its outputs."""
    inputs: list[Tensor] = []
    for module in network.modules():
        module.training = original_class(module).__name__ in DIFFERENTIABLE_IN_TRAINING_ONLY

    def live(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        inputs.append(tensor.detach().clone().requires_grad_())
        return inputs[-1].clone()  # the network may write to its input

    with torch.enable_grad(), kept_generators(network):
        args, kwargs = tree_map_only(Tensor, live, (example.args, example.kwargs))
        outputs = [t for t in float_tensors(network(*args, **kwargs)) if t.requires_grad]
        seeds = [torch.randn(t.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(t) for t in outputs]
        found = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]
