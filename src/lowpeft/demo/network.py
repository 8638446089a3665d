"""The built-in network: a HAT x2 of 0.48 M parameters, pre-trained on ordinary photographs.

`demo_hat_x2.json` beside this file records how it was made: command, data, time and PSNR.
"""

from __future__ import annotations

import json
from importlib import resources

from safetensors import safe_open

from ..errors import LowpeftError
from ..ports.facts import Backbone, Making

WEIGHTS = "demo_hat_x2.safetensors"


def demo_backbone() -> Backbone:
    """Load the built-in network with its weights.

    Raises:
        LowpeftError: spandrel is not installed, or its HAT does not fit the weights.
    """
    try:
        from spandrel.architectures.HAT import HAT
    except ImportError as error:
        raise LowpeftError("the demo network needs spandrel: pip install 'lowpeft[demo]'") from error
    with resources.as_file(resources.files(__package__) / WEIGHTS) as path, safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["hat_config"])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    module = HAT(**config).eval()
    missing, unknown = module.load_state_dict(weights, strict=False)
    if unknown or any("relative_position_index" not in key for key in missing):
        raise LowpeftError(
            f"the installed spandrel builds another HAT than {WEIGHTS} was made for: {missing}, {unknown}"
        )
    return Backbone(
        module=module,
        architecture="HAT",
        family="hat",
        scale=config["upscale"],
        value_range=(0.0, 1.0),
        size_multiple=config["window_size"],
        channels=3,
        making=Making(
            expression="demo_backbone()", imports=("from lowpeft.demo import demo_backbone",), opening={"demo": True}
        ),
    )
