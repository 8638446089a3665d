"""Opening a network of timm as what gives features."""

from __future__ import annotations

from typing import Any, cast

from ..errors import LowpeftError, did_you_mean
from ..ports.facts import Backbone

PREFIX = "timm:"
"""What `load_backbone` takes for a name of timm, and not for a path, begins so."""

ON_THE_HUB = ("hf-hub:", "hf_hub:")
"""Names of networks on the Hugging Face Hub, which timm does not list, begin so."""


def load(name: str, *, pretrained: bool, options: dict[str, Any]) -> Backbone:
    """Make a network of timm with `features_only`, in eval mode.

    Args:
        name: As timm knows it, with or without a tag (`resnet18.a1_in1k`).
        pretrained: Fetch its weights; else they are random.
        options: Further arguments of `timm.create_model`.

    Raises:
        LowpeftError: timm knows no such network (the nearest are named), or cannot make it so.
    """
    import timm

    if not name.startswith(ON_THE_HUB) and not timm.is_model(name):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise LowpeftError(f"timm {timm.__version__} has no network {name!r}{near}; timm.list_models() gives all names")
    try:
        module = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except Exception as error:  # timm passes on whatever its networks and the Hub raise
        reason = (str(error).splitlines() or [""])[0][:300]
        asked = ", ".join(
            ["features_only=True", f"pretrained={pretrained}", *(f"{k}={v!r}" for k, v in options.items())]
        )
        raise LowpeftError(f"timm cannot make {name!r} with {asked}: {type(error).__name__}: {reason}") from error
    published = cast(dict[str, Any], module.pretrained_cfg)
    size = published.get("input_size") or (None,)
    side = options.get("img_size", size[-1])
    notes = ["scale: a network of timm gives features, and no image"]
    if published.get("mean") is not None:
        notes.append(
            f"value_range: images of 0..1 less the mean {published['mean']}, over {published.get('std')}, is what its "
            "published weights take"
        )
    return Backbone(
        module=module.eval(),
        architecture=name,
        scale=None,
        channels=options.get("in_chans", size[0]),
        fixed_px=side if published.get("fixed_input_size") and isinstance(side, int) else None,
        notes=tuple(notes),
    )
