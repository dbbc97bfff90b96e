// Words: pictures and the user's own labels; pictures sorted by a sentence or another picture.

import { getJson } from "../../api.js";
import { choice, h } from "../../dom.js";
import { labels } from "./labels.js";
import { lacking } from "./missing_bundle.js";
import { search } from "./search.js";

const MODES = [
  ["labels", "Labels", labels, (model) => model.text],
  ["search", "Search", search, () => true],
];

/** Each mode is a workbench with a runner of its own, for the models that it can work with; where there is none, it says what is missing. */
export async function mount(panel, models, folders) {
  const known = await Promise.all(models.map(described));
  const modes = new Map();
  for (const [mode, title, fill, fits] of MODES) {
    const section = h("section", { "aria-label": title, hidden: true });
    const fitting = known.filter(fits);
    const runner = fitting.length ? fill(section, fitting) : null;
    if (!runner) section.append(lacking(known, folders));
    modes.set(mode, { section, runner });
  }
  const first = modes.get("labels").runner || !modes.get("search").runner ? "labels" : "search";
  panel.append(
    h(
      "div",
      { class: "modes" },
      choice(
        "Mode",
        MODES.map(([mode, title]) => [mode, title]),
        first,
        show,
      ),
    ),
    ...[...modes.values()].map(({ section }) => section),
  );
  let current = first;
  show(first);
  return {
    run: () => modes.get(current).runner?.run(),
    stop: () => modes.get(current).runner?.stop(),
    take: (files) => modes.get(current).runner?.take(files),
    resume() {},
  };

  function show(mode) {
    current = mode;
    for (const [one, { section }] of modes) section.hidden = one !== mode;
  }
}

/** A model with how it reads texts, null where it cannot. */
async function described(model) {
  const { spec } = await getJson(`v1/models/${model.name}@${model.version}`);
  return { ...model, text: spec.text ?? null };
}
