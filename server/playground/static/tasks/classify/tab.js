// Classify: a picture, its labels as bars, and which of its tokens were merged.

import { getJson } from "../../api.js";
import { bars } from "../../score_bars.js";
import { field, h, save, seconds, select } from "../../dom.js";
import { partOf, pictureInput, show } from "../../image_input.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { comparison } from "./merge_benchmark.js";
import { mergedView } from "./merged_tokens.js";

const SAMPLES = ["brazil", "kenya", "seychelles", "nepal", "chad"].map((name) => ({
  name: `${name}.png`,
  model: "flags",
  label: `Flag of ${name[0].toUpperCase()}${name.slice(1)}`,
}));

export function mount(panel, models) {
  let picture = null;
  const specs = new Map(); // model → how it crops pictures

  const preview = h("canvas", { class: "shown", role: "img", "aria-label": "The chosen image", hidden: true });
  const name = h("p", { class: "caption" });
  const model = new ModelChoice(models, fit);
  const topK = h("input", { type: "number", min: 1, value: "5", inputMode: "numeric" });
  const merge = select([], "");
  const compare = h("input", { type: "checkbox" });
  const merging = h(
    "div",
    { class: "fields" },
    field("Token merging", merge),
    h("label", { class: "check" }, compare, h("span", {}, "Compare with merging off")),
  );
  const hint = h("p", { class: "hint" });
  const result = h("div", { class: "answers" }, hint);

  const runner = new TaskRunner("classify", work);
  runner.block("Choose an image, or run one of the samples.");
  const input = pictureInput(panel, {
    part: partOf(models, "image"),
    samples: SAMPLES,
    stage: h("figure", {}, preview, name),
    block: (reason) => runner.block(reason),
    onpicture: choose,
    onsample: () => runner.runAgain(),
    invitation: "An image to classify",
  });
  runner.take = input.receive;
  runner.first = input.first;
  workbench(panel, {
    input: input.element,
    result,
    settings: h("div", { class: "fields" }, model.element, field("Labels", topK), merging),
    runner,
  });
  fit();
  return runner;

  /** The controls that the chosen model understands. */
  function fit() {
    const { ladder, default_rung: rung, labels } = model.chosen;
    topK.max = labels;
    if (Number(topK.value) > labels) topK.value = labels;
    merging.hidden = ladder.length === 0;
    hint.textContent = merging.hidden ? "The labels appear here." : "The labels appear here, with the merged tokens.";
    merge.replaceChildren(...ladder.map((one) => h("option", { value: one.name }, described(one))), h("option", { value: "off" }, "off"));
    merge.value = rung ?? "off";
  }

  function choose(given, sample) {
    if (sample) model.take(sample.model);
    picture = given;
    runner.changed();
    preview.hidden = given.bitmap === null;
    if (given.bitmap) show(preview, given.bitmap);
    name.textContent = given.bitmap
      ? `${given.name}, ${given.bitmap.width} × ${given.bitmap.height}`
      : `${given.name} (this browser cannot show it)`;
    runner.block("");
  }

  async function work(session) {
    const parts = [["image", picture.blob, picture.name]];
    const sent = { picture, parts, options: options(merging.hidden ? {} : { merge: merge.value, trace: true }) };
    const answer = await session.ask("v1/classify", sent);
    const plainly = !merging.hidden && compare.checked && merge.value !== "off";
    const off = options({ merge: "off", trace: true }); // a trace is run by PyTorch: both are, or their times would not compare
    const plain = plainly ? await session.ask("v1/classify", { ...sent, options: off }) : null;
    const compared = plainly ? await comparison(session, sent) : null;
    const spec = await specOf(sent.options.model);
    result.replaceChildren(...answers(answer, plain, compared, sent, spec));
    session.shows(sent.picture.name);
    if (picture !== sent.picture) runner.changed();
  }

  function options(more) {
    return { model: model.value, top_k: Number(topK.value) || 5, ...more };
  }

  async function specOf(id) {
    if (!specs.has(id)) specs.set(id, (await getJson(`v1/models/${id}`)).spec);
    return specs.get(id);
  }
}

function described({ name, throughput }) {
  return throughput ? `${name}: up to ${throughput.toFixed(2)}× as fast` : name;
}

function answers(answer, plain, compared, { picture, options }, spec) {
  const { trace, ...calls } = options;
  const columns = [column(plain ? titleOf(answer) : null, answer), plain && column("Merging off", plain)].filter(Boolean);
  const merging = answer.results[0].merging;
  const seen = merging?.trace && picture.bitmap ? mergedView(picture.bitmap, merging, spec.preprocess) : null;
  const json = () => save(new Blob([JSON.stringify(answer, null, 2)], { type: "application/json" }), "labels.json");
  const show = "print(result.label, result.score)";
  return [
    h("div", { class: "columns" }, columns),
    compared,
    seen,
    report(answer, callsOf("classify", { image: picture.name }, calls, { curlOnly: trace ? { trace } : {}, python: show }), [
      ["Download JSON", json],
    ]),
  ].filter(Boolean);
}

function titleOf({ results: [{ merging }] }) {
  return `${merging.rung ?? "Merged"}: ${merging.tokens_out} of ${merging.tokens_in} tokens`;
}

function column(title, answer) {
  const timing = title ? h("p", { class: "caption" }, `model ${seconds(answer.timing.inference_ms)} for this image alone`) : null;
  return h("div", {}, title ? h("h3", {}, title) : null, bars(answer.results[0].predictions), timing);
}
