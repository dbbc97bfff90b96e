// The layout that tabs share: input, result, settings.

import { field, h, select } from "./dom.js";

export const NARROW = matchMedia("(max-width: 900px)"); // one column, as playground.css says

/** Fills a panel. `result` is shown under the runner's error box; where it may be out of sight, a run brings it there. */
export function workbench(panel, { input, result, settings, runner }) {
  const earlier = h("p", { class: "earlier", role: "status", hidden: true });
  const answer = h("div", {}, result);
  const results = h("section", { class: "card result", "aria-label": "Result" }, h("h2", {}, "Result"), runner.error, earlier, answer);
  runner.onrun = () => NARROW.matches && results.scrollIntoView();
  runner.onstale = (name) => {
    earlier.hidden = !name;
    earlier.textContent = name && `This result belongs to an earlier input: ${name}.`;
    answer.classList.toggle("stale", Boolean(name));
  };
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
  panel.addEventListener("input", () => (runner.error.hidden = true)); // it told of other settings
}

/** A choice among the bundles of a task, the default one first, with what each does and what it was trained on. */
export class ModelChoice {
  #models;

  constructor(models, onchange = () => {}) {
    this.#models = models;
    this.onchange = onchange;
    const sorted = [...models].sort((a, b) => Number(b.default) - Number(a.default));
    const options = sorted.map((model) => [idOf(model), `${model.name} ${model.version}`]);
    this.select = select(options, options[0][0], { onchange: () => this.#changed() });
    this.about = h("div", { class: "about" });
    this.element = h("div", { class: "model" }, field("Model", this.select), this.about);
    this.#tell();
  }

  /** `name@version`. */
  get value() {
    return this.select.value;
  }

  /** As GET /v1/models lists it. */
  get chosen() {
    return this.#models.find((model) => idOf(model) === this.value);
  }

  /** The one of this name, or name@version, if it is served. */
  take(wanted) {
    const found = [...this.select.options].find(({ value }) => value === wanted || value.split("@")[0] === wanted);
    if (!found || found.value === this.value) return;
    this.select.value = found.value;
    this.#changed();
  }

  #changed() {
    this.#tell();
    this.onchange();
  }

  #tell() {
    const { summary, trained_on: data, note } = this.chosen;
    const lines = [note && h("p", { class: "note" }, note), summary && h("p", {}, summary), data && h("p", {}, `Trained on ${data}`)];
    this.about.replaceChildren(...lines.filter(Boolean));
  }
}

const idOf = ({ name, version }) => `${name}@${version}`;
