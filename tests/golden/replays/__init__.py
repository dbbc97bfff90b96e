"""One replay for each system: its network's answers to the inputs of a recorded case."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.golden.case import Case, Replay
from tests.golden.replays import cit, diffmae, flip, hmr2, lart, mae, mae_st, mavil, maws, mcc, mvit, phalp, rev, tome

REPLAYS: Mapping[str, Callable[[Case], Replay]] = {
    "cit": cit.replay,
    "diffmae": diffmae.replay,
    "flip": flip.replay,
    "hmr2": hmr2.replay,
    "lart": lart.replay,
    "mae": mae.replay,
    "mae_st": mae_st.replay,
    "mavil": mavil.replay,
    "maws": maws.replay,
    "mcc": mcc.replay,
    "mvit": mvit.replay,
    "phalp": phalp.replay,
    "rev": rev.replay,
    "tome": tome.replay,
}
"""Replays by the `system` of a case."""
