"""MCC. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Native, Purpose, SizeTable, System
from models.spec import Space

SYSTEM = System(
    architectures=(
        Architecture(
            name="mcc",
            model="models.mcc.model:MCC",
            purpose=Purpose(lambda config: "reconstruct", space=lambda config: Space(source_size=800)),
            steps={"reconstruct": "models.mcc.steps:reconstruct_steps"},
            precise_tasks=frozenset({"reconstruct"}),
            native=Native("scene", lambda config: 2 * (int(config.side) ** 2 + 1), "models.mcc.native:scene"),
        ),
        Architecture(
            name="mcc_photograph",
            model="models.mcc.photographs:PhotographMCC",
            purpose=Purpose(lambda config: "reconstruct", size=lambda config: None),
            steps={"reconstruct": "models.mcc.photographs:photograph_steps"},
            precise_tasks=frozenset({"reconstruct"}),
            merges=False,
            assemble="models.mcc.photographs:assemble",
        ),
    ),
    sizes=(SizeTable("MCC", "mcc", "arXiv 2301.08247", "models.mcc.model:PUBLISHED"),),
    families={"mcc": "models.mcc.published:FAMILY"},
)
