"""Create timm networks as feature extractors."""

from __future__ import annotations

from typing import Any, cast

from ..errors import LowpeftError, did_you_mean
from ..families import recognise
from ..ports.facts import Backbone, Making, call, literal

PREFIX = "timm:"
"""Prefix that marks a timm name, as opposed to a path, in `load_backbone`."""

ON_THE_HUB = ("hf-hub:", "hf_hub:")
"""Prefixes of the names of networks on the Hugging Face Hub, which timm does not list."""


def load(name: str, *, pretrained: bool, options: dict[str, Any]) -> Backbone:
    """Create a timm network with `features_only=True`, in eval mode.

    Args:
        name: timm's name of the network, with or without a tag (`resnet18.a1_in1k`).
        pretrained: True to download its weights; otherwise they are random.
        options: Further arguments of `timm.create_model`.

    Raises:
        LowpeftError: timm has no network of that name (the message names the nearest), or cannot create it with these
            options.
    """
    import timm

    if not name.startswith(ON_THE_HUB) and not timm.is_model(name):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise LowpeftError(f"timm {timm.__version__} has no network {name!r}{near}; timm.list_models() lists all names")
    try:
        module = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except Exception as error:  # timm does not catch what its networks and the Hub raise
        reason = (str(error).splitlines() or [""])[0][:300]
        given = ", ".join(f"{k}={v!r}" for k, v in {"features_only": True, "pretrained": pretrained, **options}.items())
        raise LowpeftError(f"timm cannot create {name!r} with {given}: {type(error).__name__}: {reason}") from error
    published = cast(dict[str, Any], module.pretrained_cfg)
    size = published.get("input_size") or (None,)
    side = options.get("img_size", size[-1])
    notes = ["scale: a network of timm gives features, and no image"]
    if published.get("mean") is not None:
        notes.append(
            f"value_range: images of 0..1 less the mean {published['mean']}, over {published.get('std')}, is what its "
            "published weights take"
        )
    family = recognise(module)
    asked = {**({"pretrained": True} if pretrained else {}), **options}
    return Backbone(
        module=module.eval(),
        architecture=name,
        family=family.family.name if family else None,
        scale=None,
        channels=options.get("in_chans", size[0]),
        fixed_px=side if published.get("fixed_input_size") and isinstance(side, int) else None,
        notes=tuple(notes),
        making=Making(expression=call("lowpeft.load_backbone", literal(PREFIX + name), **asked)),
    )
