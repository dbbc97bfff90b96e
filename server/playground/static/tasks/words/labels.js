// Labels: pictures, and how well each of the user's own labels fits them.

import { bars } from "../../score_bars.js";
import { Chips } from "../../chip_input.js";
import { field, h, save } from "../../dom.js";
import { partOf, pictureInput } from "../../image_input.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, NARROW, workbench } from "../../tab_layout.js";
import { kept, thumbnail } from "./thumbnails.js";

const MAX_SHOWN = 20; // labels of a picture
const THINGS = { daisy: "a flower", ladybug: "an insect", mug: "a mug", padlock: "a lock", umbrella: "an umbrella" };
const SAMPLES = Object.keys(THINGS).map((name) => ({ name: `${name}.png`, label: `Drawing: ${name}` }));

/** Fills a section, for models that read texts. Returns its TaskRunner. */
export function labels(section, models) {
  const part = partOf(models, "image");
  let pictures = [];
  let scores = new Map(); // picture → Map of label → score

  const stage = h("ul", { class: "thumbnails", "aria-label": "Your images" });
  const chips = new Chips("Labels", "Enter or a comma adds a label; you can also paste a list.", changed);
  const templates = h("textarea", { rows: 3, spellcheck: false, onchange: changed });
  const model = new ModelChoice(models, () => (fit(), changed()));
  const result = h("div", { class: "answers" }, h("p", { class: "hint" }, "The scores of your labels appear here."));
  const runner = new TaskRunner("words", work);
  const input = pictureInput(section, {
    part,
    samples: SAMPLES,
    stage,
    block: (reason) => runner.block(reason),
    onpicture: choose,
    onsample: () => runner.runAgain(),
    invitation: "Images to label",
    multiple: true,
  });
  runner.take = input.receive;
  workbench(section, {
    input: h(
      "div",
      { class: "fields" },
      input.element,
      chips.element,
      h(
        "details",
        {},
        h("summary", {}, "Templates"),
        field("Sentences into which labels are inserted, one per line", templates, "Each with {} in place of the label. If empty, the model's templates are used."),
      ),
    ),
    result,
    settings: h("div", { class: "fields" }, model.element),
    runner,
  });
  fit();
  changed();
  return runner;

  /** The model's own templates. */
  function fit() {
    templates.placeholder = model.chosen.text.templates.join("\n");
  }

  function missing() {
    if (!pictures.length) return "Choose an image, or run one of the samples.";
    if (!chips.texts.length) return "Enter at least two labels.";
    const alone = chips.texts.length === 1 && model.chosen.text.scores === "softmax";
    return alone ? "Add another label: a single one always scores 100 %." : "";
  }

  /** Pictures or words are others. Once there are scores they follow, where they can be seen. */
  function changed() {
    runner.changed();
    const reason = missing();
    runner.block(reason);
    if (scores.size && !reason && !NARROW.matches) runner.runAgain();
  }

  /** A sample takes the place of all, and brings labels where there are none. */
  function choose(given, sample) {
    if (sample) pictures = [];
    pictures = [...pictures, kept(given)].slice(-part.max_count);
    if (sample && !chips.texts.length) chips.add(Object.values(THINGS));
    show();
    runner.changed();
    runner.block(missing());
  }

  function show() {
    stage.replaceChildren(
      ...pictures.map((picture) =>
        h(
          "li",
          {},
          thumbnail(picture.small, picture.name),
          h("span", { class: "caption" }, picture.name),
          h("button", { type: "button", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) }, "×"),
        ),
      ),
    );
  }

  function remove(picture) {
    pictures = pictures.filter((one) => one !== picture);
    show();
    (stage.querySelector("button") ?? section.querySelector("input[type=file]")).focus();
    changed();
  }

  async function work(session) {
    const sent = pictures;
    const given = chips.texts;
    const own = templates.value.split("\n").filter((line) => line.trim());
    const options = {
      model: model.value,
      label: given,
      top_k: Math.min(given.length, MAX_SHOWN),
      ...(own.length ? { template: own } : {}),
    };
    const answer = await session.ask("v1/zero-shot", { parts: sent.map(({ blob, name }) => ["image", blob, name]), options });
    const columns = answer.results.map(({ predictions }, index) => {
      const { small, name } = sent[index];
      return h(
        "div",
        {},
        h("figure", {}, thumbnail(small, name), h("p", { class: "caption" }, name)),
        bars(predictions, scores.get(sent[index])),
      );
    });
    scores = new Map(
      answer.results.map(({ predictions }, index) => [sent[index], new Map(predictions.map(({ label, score }) => [label, score]))]),
    );
    result.replaceChildren(
      h("p", { class: "caption told" }, toldOf(answer, model.chosen.text.scores)),
      h("div", { class: "columns" }, columns),
      reported(answer, sent, options),
    );
    session.shows(nameOf(sent));
  }
}

const nameOf = (pictures) => (pictures.length === 1 ? pictures[0].name : `${pictures.length} images`);

function toldOf({ labels: { count, cached, truncated }, templates }, scores) {
  const over = scores === "softmax" ? `Softmax over your ${count} labels` : `Sigmoid of each of your ${count} labels`;
  const put =
    templates.length > 1 ? `, each inserted into ${templates.length} templates` : templates[0] === "{}" ? "" : `, inserted into “${templates[0]}”`;
  const cut = truncated ? ` ${truncated} of them were truncated: too long for this model.` : "";
  return `${over}${put}; the vectors of ${cached} were cached.${cut}`;
}

function reported(answer, pictures, { label, template, ...others }) {
  const names = pictures.map(({ name }) => name);
  const options = { ...others, label, ...(template ? { template } : {}) };
  const keywords = { labels: label, ...others, ...(template ? { templates: template } : {}) };
  const several = names.length > 1;
  const shown = several ? "for one in result:\n        print(one.predictions[0])" : "print(result.predictions[0])";
  const calls = callsOf("zero-shot", { image: several ? names : names[0] }, options, { keywords, python: shown });
  const json = () => save(new Blob([JSON.stringify(answer, null, 2)], { type: "application/json" }), "labels.json");
  return report(answer, calls, [["Download JSON", json]]);
}
