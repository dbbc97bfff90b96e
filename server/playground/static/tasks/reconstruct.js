// 3D: a picture with depth, and the whole shape, found level by level.

import { field, fromBase64, h, save, select } from "../dom.js";
import { callsOf, report } from "../report.js";
import { Runner } from "../runner.js";
import { modelSelect, workbench } from "../workbench.js";
import { Capture } from "./capture.js";
import { ShapeView } from "./shape_view.js";

const GLB = "model/gltf-binary";
const PLY = "application/x-ply";

export function mount(panel, models) {
  let job = null; // whose files are shown
  const view = new ShapeView();
  const below = h("div");
  const runner = new Runner(work, (words) => view.stopped(words));
  const capture = new Capture(panel, (reason) => runner.block(reason));
  const model = modelSelect(models);
  const spacing = h("input", { type: "number", min: 0.01, step: "any", placeholder: "the bundle's", inputMode: "decimal" });
  const threshold = h("input", { type: "number", min: 0.01, max: 0.99, step: 0.01, value: "0.1", inputMode: "decimal" });
  const mode = select(
    [
      ["adaptive", "adaptive: where something is"],
      ["dense", "dense: every cell"],
    ],
    "adaptive",
  );
  workbench(panel, {
    input: capture.element,
    result: h("div", { class: "answers" }, view.element, below),
    settings: h(
      "div",
      { class: "fields" },
      field("Model", model),
      field("Spacing", spacing, "between cells, in units of the seen points' spread"),
      field("Threshold", threshold, "probability of an occupied cell"),
      field("Mode", mode),
    ),
    runner,
  });
  return runner;

  async function work(session) {
    const parts = capture.parts;
    const options = { model: model.value, ...capture.options, threshold: Number(threshold.value), mode: mode.value };
    if (spacing.value) options.spacing = Number(spacing.value);
    job?.forget();
    job = null;
    below.replaceChildren();
    view.clear();
    const preview = ({ level, points }) => view.level(fromBase64(points, PLY), (count) => `Level ${level}: ${count} points shown`);
    const asked = await session.askLater("v1/reconstruct", form(parts, options), preview);
    const { answer } = asked;
    job = asked.job;
    const glb = fromBase64(answer.file, GLB);
    const ply = await job.file(PLY);
    if (answer.points) await view.whole(glb, ply, () => describe(answer));
    else view.words.textContent = "Nothing is occupied. A lower threshold may find something.";
    const files = Object.fromEntries(parts.map(([part, , name]) => [part, name]));
    const calls = callsOf("reconstruct", files, options, {
      output: "scene.glb",
      command: flags(options),
      python: 'result.save("scene.glb")',
    });
    below.replaceChildren(
      report(answer, calls, [
        ["Download GLB", () => save(glb, "scene.glb")],
        ["Download PLY", () => save(ply, "scene.ply")],
      ]),
    );
  }
}

function describe({ points, queries, bounds: [low, high] }) {
  const sides = low.map((value, axis) => (high[axis] - value).toPrecision(2));
  return `${points.toLocaleString("en")} points, ${queries.toLocaleString("en")} places asked, ${sides.join(" × ")} m; bluish is guessed`;
}

/** The command has one option for the focal length and its like. */
function flags({ fx, fy, cx, cy, ...others }) {
  if (fx === undefined) return others;
  const middle = cx === undefined || cy === undefined ? [] : [cx, cy];
  return { ...others, intrinsics: [fx, fy ?? fx, ...middle].join(",") };
}

function form(parts, options) {
  const form = new FormData();
  for (const [part, blob, name] of parts) form.append(part, blob, name);
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  return form;
}
