"""Training: a recipe's networks, one phase after another, and the bundle that it ends in.

What other packages may import, `starters` among them:

- recipes and runs: `recipe`, `recipe_settings`, `options`, `kinds`, `phase_runner`, `shipped_files`, `run_logger`, `fingerprint`,
  `checkpoint`, `errors`
- data: all of `data`
- networks and losses: all of `objectives`, `efficientnet_lite0`
- evaluation: all of `evaluation`

Everything else may change tomorrow.
"""
