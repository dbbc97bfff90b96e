// The layout that tabs share: input, result, settings.

import { h, select } from "./dom.js";

const NARROW = matchMedia("(max-width: 900px)"); // one column, as playground.css says

/** Fills a panel. `result` is shown under the runner's error box; where it may be out of sight, a run brings it there. */
export function workbench(panel, { input, result, settings, runner }) {
  const results = h("section", { class: "card result", "aria-label": "Result" }, h("h2", {}, "Result"), runner.error, result);
  runner.onrun = () => NARROW.matches && results.scrollIntoView();
  panel.classList.add("workbench");
  panel.append(
    h("section", { class: "card input", "aria-label": "Input" }, h("h2", {}, "Input"), input),
    results,
    h(
      "section",
      { class: "card settings", "aria-label": "Settings" },
      h("h2", {}, "Settings"),
      settings,
      runner.controls,
      runner.announcer,
    ),
  );
}

/** A choice among the bundles of a task; the default one first. */
export function modelSelect(models, onchange) {
  const sorted = [...models].sort((a, b) => Number(b.default) - Number(a.default));
  const options = sorted.map((model) => [`${model.name}@${model.version}`, `${model.name} ${model.version}`]);
  return select(options, options[0][0], { onchange });
}
