// Inpaint: a picture, a painted mask, and the hole filled step by step.

import { field, fromBase64, h, save, select } from "../../dom.js";
import { FileRejected } from "../../file_checks.js";
import { partOf, pictureInput } from "../../image_input.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { Frames } from "./inpaint_frames.js";
import { MaskPainter } from "./mask_painter.js";

const SAMPLES = ["daisy", "ladybug", "padlock", "umbrella"].map((name) => ({
  name: `${name}.png`,
  model: "inpaint",
  companion: `${name}-mask.png`,
  label: `Drawing of a ${name}, with a hole`,
}));
const PRESETS = [
  ["", "default: chosen for the hole"],
  ["draft", "draft: 1 step, smooth"],
  ["fast", "fast: 10 steps"],
  ["standard", "standard: 100 steps"],
  ["full", "full: 1000 steps"],
];
const DRAWN_SEEDS = 2 ** 31;

/** What filled the hole, in words. */
function how(answer) {
  if (answer.method === "exemplar") return "patches copied from around the hole";
  const network = `${answer.steps} steps of ${answer.sampler}`;
  return answer.method === "network-exemplar" ? `${network}, then patches copied from around the hole` : network;
}

export function mount(panel, models) {
  let picture = null;
  const model = new ModelChoice(models);
  const preset = select(PRESETS, "");
  const steps = h("input", { type: "number", min: 1, max: 1000, placeholder: "the preset's", inputMode: "numeric" });
  const seed = h("input", { type: "number", min: 0, step: 1, placeholder: "random", inputMode: "numeric" });
  const draw = h(
    "button",
    {
      type: "button",
      title: "Random seed",
      "aria-label": "Random seed",
      onclick: () => (seed.value = Math.floor(Math.random() * DRAWN_SEEDS)),
    },
    "⚄",
  );
  const painter = new MaskPainter((count) => {
    runner.changed();
    runner.block(count ? "" : "Paint the area to fill.");
  });
  const frames = new Frames();
  const below = h("div");
  const runner = new TaskRunner("inpaint", work, { onstop: (words) => frames.stopped(words), restore });
  runner.block("Choose an image, or run one of the samples.");
  const input = pictureInput(panel, {
    part: partOf(models, "image"),
    samples: SAMPLES,
    stage: painter.stage,
    block: (reason) => runner.block(reason),
    onpicture: choose,
    onsample: () => runner.runAgain(),
    invitation: "An image to fill",
  });
  runner.take = input.receive;
  runner.first = input.first;
  workbench(panel, {
    input: h("div", {}, input.element, painter.tools),
    result: h("div", { class: "answers" }, frames.element, below),
    settings: h(
      "div",
      { class: "fields" },
      model.element,
      field("Preset", preset),
      field("Steps", steps),
      h("div", { class: "with" }, field("Seed", seed), draw),
    ),
    runner,
  });
  return runner;

  async function choose(given, sample) {
    if (given.bitmap === null)
      throw new FileRejected(`This browser cannot show ${given.name}, so nothing can be painted on it. Choose a PNG, JPEG or WebP.`);
    if (sample) model.take(sample.model);
    picture = given;
    await painter.set(given.bitmap, given.companion);
  }

  /** Restores the input of a job that was started before the page was reloaded. */
  async function restore({ parts: [[, blob, name], [, mask]], options }) {
    model.take(options.model);
    await choose({ blob, name, bitmap: await createImageBitmap(blob), companion: mask });
    input.filled();
  }

  async function work(session) {
    const sent = session.sent ?? (await asked());
    const [[, , name], [, mask]] = sent.parts;
    session.shows(name);
    below.replaceChildren();
    if (mask) frames.begin(picture.bitmap, painter.mask);
    else frames.clear(); // the page was loaded again, and the picture was too large to keep
    const { job, answer } = await session.requestAsJob("v1/inpaint", sent, ({ step, box, image }) =>
      frames.preview(step, box, fromBase64(image, "image/png")),
    );
    job.forget();
    const filled = fromBase64(answer.results[0].image, "image/png");
    const options = { ...sent.options, seed: answer.results[0].seed };
    frames.done(filled, answer.steps);
    const calls = callsOf("inpaint", { image: name, mask: "mask.png" }, options, {
      output: "filled.png",
      python: 'result.save("filled.png")',
    });
    const facts = h(
      "p",
      { class: "caption" },
      `${answer.masked_pixels.toLocaleString("en")} pixels filled, seed ${options.seed}, ${how(answer)}`,
    );
    const downloads = [["Download PNG", () => save(filled, "filled.png")]];
    if (mask) downloads.push(["Download mask", () => save(mask, "mask.png")]);
    below.replaceChildren(facts, report(answer, calls, downloads));
  }

  async function asked() {
    const options = { model: model.value };
    if (preset.value) options.preset = preset.value;
    if (steps.value) options.steps = Number(steps.value);
    if (seed.value) options.seed = Number(seed.value);
    const mask = await painter.mask.toPng();
    return {
      parts: [
        ["image", picture.blob, picture.name],
        ["mask", mask, "mask.png"],
      ],
      options,
    };
  }
}
