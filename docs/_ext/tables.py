"""A Sphinx directive, `{generated} NAME`, that writes what the package itself knows.

Every function of `generated` returns Markdown. Where the package does not have a thing, the page says so.
"""

from __future__ import annotations

from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from claims import CLAIMS
from generated import base, costs, methods, networks, paper, reference, registries, stereo

GENERATED: dict[str, Callable[[], str]] = {
    "degradations": registries.degradations,
    "experiments": registries.experiments,
    "families": registries.families,
    "feature-kinds": registries.kinds_on(("features", "tokens", "image")),
    "fingerprint": registries.fingerprint,
    "image-words": registries.image_words,
    "kinds": registries.kinds,
    "layouts": registries.layouts,
    "protocols": registries.protocols,
    "recipes": registries.recipes,
    "sites": registries.sites,
    "weight-kinds": registries.kinds_on(("weights",)),
    "api": reference.api,
    "cli": reference.cli,
    "exit_codes": reference.exit_codes,
    "attacks": base.section("attacks", networks.attacks),
    "networks": networks.networks,
    "probing": networks.probing,
    "published": networks.published,
    **{name: paper.ablation(name) for name in CLAIMS},
    **{f"{name}-findings": paper.findings(name) for name in CLAIMS},
    "anchors": paper.anchors,
    "beside": paper.beside_paper,
    "cost": paper.training_cost,
    "speed": paper.speed,
    "starts": paper.stereo_start,
    "found-gains": stereo.found_in_pairs("gain"),
    "found-offsets": stereo.found_in_pairs("offset_px"),
    "other-view-clean": base.section("evidence", stereo.other_view("clean")),
    "other-view-hours": base.section("evidence", base.hours),
    "other-view-kitti": base.section("evidence", stereo.kitti),
    "other-view-noise": base.section("evidence", stereo.other_view("noise10")),
    "own-offsets": stereo.own_offsets,
    "parallax-demo": stereo.parallax_demo,
    "parallax-forms": stereo.parallax_forms,
    "parallax-rigs": stereo.parallax_rigs,
    "parallax-steps": stereo.parallax_steps,
    "denoiser": base.section("denoiser", methods.denoiser),
    "hundred-steps": base.section("hundred_steps", methods.hundred_steps),
    "merge-parity": base.section("merge_parity", methods.merge_parity),
    "same-budget-cost": base.section("methods", methods.same_budget_cost),
    "same-budget-far": base.section("methods", methods.same_budget("far")),
    "same-budget-forgetting": base.section("methods", methods.same_budget_forgetting),
    "same-budget-hours": base.section("methods", base.hours),
    "same-budget-near": base.section("methods", methods.same_budget("near")),
    "same-budget-rates": base.section("methods", methods.same_budget_rates),
    "cost-attention": base.section("cost_cuda", costs.cost_attention),
    "cost-inference": base.section("cost", costs.cost_times("infer")),
    "cost-inference-cuda": base.section("cost_cuda", costs.cost_times("infer")),
    "cost-memory": base.section("cost", costs.cost_memory),
    "cost-steps": base.section("cost", costs.cost_times("train")),
    "cost-steps-cuda": base.section("cost_cuda", costs.cost_times("train")),
    "switches": costs.switches,
    "ensemble": base.measured("ensemble"),
    "memory": base.measured("memory_of_a_pair"),
    "pools": base.measured("pools"),
    "strips": base.measured("strips"),
}


class Generated(SphinxDirective):
    """`{generated} NAME`: the Markdown of one of the functions above, parsed in place."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            text = GENERATED[self.arguments[0]]()
        except LookupError as missing:
            text = f"*Not available: `{missing}` was not found when these pages were built.*"
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True, "env_version": 1}
