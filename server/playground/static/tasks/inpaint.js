// Inpaint: a picture, a painted mask, and the hole filled step by step.

import { field, fromBase64, h, save, select } from "../dom.js";
import { pictureInput } from "../picture.js";
import { callsOf, report } from "../report.js";
import { Runner } from "../runner.js";
import { modelSelect, workbench } from "../workbench.js";
import { Frames } from "./frames.js";
import { MaskPainter } from "./mask_painter.js";

const SAMPLES = ["daisy", "ladybug", "padlock", "umbrella"].map((name) => ({
  name: `${name}.png`,
  companion: `${name}-mask.png`,
  label: `Drawing of a ${name}, with a hole`,
}));
const PRESETS = [
  ["", "usual: what suits the hole"],
  ["draft", "draft: 1 step, smooth"],
  ["fast", "fast: 10 steps"],
  ["standard", "standard: 100 steps"],
  ["full", "full: 1000 steps"],
];
const DRAWN_SEEDS = 2 ** 31;

/** What filled the hole, in words. */
function how(answer) {
  if (answer.method === "exemplar") return "patches copied from around it";
  const network = `${answer.steps} steps of ${answer.sampler}`;
  return answer.method === "network-exemplar" ? `${network}, then patches copied from around it` : network;
}

export function mount(panel, models) {
  let picture = null;
  const model = modelSelect(models);
  const preset = select(PRESETS, "");
  const steps = h("input", { type: "number", min: 1, max: 1000, placeholder: "the preset's", inputMode: "numeric" });
  const seed = h("input", { type: "number", min: 0, step: 1, placeholder: "drawn", inputMode: "numeric" });
  const draw = h(
    "button",
    {
      type: "button",
      title: "Draw a seed",
      "aria-label": "Draw a seed",
      onclick: () => (seed.value = Math.floor(Math.random() * DRAWN_SEEDS)),
    },
    "⚄",
  );
  const painter = new MaskPainter((count) => runner.block(count ? "" : "Paint what is to be filled."));
  const frames = new Frames();
  const below = h("div");
  const runner = new Runner(work, (words) => frames.stopped(words));
  runner.block("Choose a picture, or one of the samples.");
  workbench(panel, {
    input: h(
      "div",
      {},
      pictureInput(panel, {
        samples: SAMPLES,
        stage: painter.stage,
        block: (reason) => runner.block(reason),
        onpicture: choose,
        invitation: "A picture to fill",
      }),
      painter.tools,
    ),
    result: h("div", { class: "answers" }, frames.element, below),
    settings: h(
      "div",
      { class: "fields" },
      field("Model", model),
      field("Preset", preset),
      field("Steps", steps),
      h("div", { class: "with" }, field("Seed", seed), draw),
    ),
    runner,
  });
  return runner;

  async function choose(given) {
    if (given.bitmap === null) {
      runner.block(`This browser cannot show ${given.name}, so nothing can be painted on it. Choose a PNG, JPEG or WebP.`);
      return;
    }
    picture = given;
    frames.clear();
    below.replaceChildren();
    await painter.set(given.bitmap, given.companion);
  }

  async function work(session) {
    const mask = await painter.mask.toPng();
    const options = { model: model.value };
    if (preset.value) options.preset = preset.value;
    if (steps.value) options.steps = Number(steps.value);
    if (seed.value) options.seed = Number(seed.value);
    const sent = picture;
    frames.begin(sent.bitmap);
    below.replaceChildren();
    const answer = await session.ask("v1/inpaint", form(sent, mask, options), ({ step, image }) =>
      frames.preview(step, fromBase64(image, "image/png")),
    );
    const filled = fromBase64(answer.results[0].image, "image/png");
    options.seed = answer.results[0].seed;
    frames.done(filled, answer.steps);
    const calls = callsOf("inpaint", { image: sent.name, mask: "mask.png" }, options, {
      output: "filled.png",
      python: 'result.save("filled.png")',
    });
    const facts = h(
      "p",
      { class: "caption" },
      `${answer.masked_pixels.toLocaleString("en")} pixels filled, seed ${options.seed}, ${how(answer)}`,
    );
    below.replaceChildren(
      facts,
      report(answer, calls, [
        ["Download PNG", () => save(filled, "filled.png")],
        ["Download mask", () => save(mask, "mask.png")],
      ]),
    );
  }
}

function form(picture, mask, options) {
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  form.append("mask", mask, "mask.png");
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  return form;
}
