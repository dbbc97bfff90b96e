// 3D: a picture with depth, and the whole shape, found level by level.

import { field, fromBase64, h, save, select } from "../../dom.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { CaptureInput } from "./capture_input.js";
import { ShapeView } from "./shape_view.js";

const GLB = "model/gltf-binary";
const PLY = "application/x-ply";

export function mount(panel, models) {
  let job = null; // whose files are shown
  const view = new ShapeView();
  const below = h("div");
  const runner = new TaskRunner("reconstruct", work, { onstop: (words) => view.stopped(words), restore });
  const model = new ModelChoice(models, () => capture.tell());
  const capture = new CaptureInput(panel, models, {
    block: (reason) => runner.block(reason),
    alone: () => "depth" in model.chosen.members,
    onchange: (sample) => {
      if (sample) model.take(sample.model);
      runner.changed();
    },
    onsample: () => runner.runAgain(),
  });
  runner.take = capture.receive;
  runner.first = capture.first;
  const spacing = h("input", { type: "number", min: 0.01, step: "any", placeholder: "bundle's default", inputMode: "decimal" });
  const threshold = h("input", { type: "number", min: 0.01, max: 0.99, step: 0.01, value: "0.1", inputMode: "decimal" });
  const mode = select(
    [
      ["adaptive", "adaptive: near occupied cells"],
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
      model.element,
      field("Spacing", spacing, "of cells, in standard deviations of the visible points"),
      field("Threshold", threshold, "minimum probability of an occupied cell"),
      field("Mode", mode),
    ),
    runner,
  });
  return runner;

  /** Restores the input of a job that was started before the page was reloaded. */
  function restore({ parts, options }) {
    model.take(options.model);
    return capture.restore(parts, options);
  }

  function asked() {
    const options = { model: model.value, ...capture.options, threshold: Number(threshold.value), mode: mode.value };
    if (spacing.value) options.spacing = Number(spacing.value);
    return { parts: capture.parts, options };
  }

  async function work(session) {
    const sent = session.sent ?? asked();
    const { parts, options } = sent;
    job?.forget();
    job = null;
    below.replaceChildren();
    view.clear();
    session.shows(parts[0][2]);
    const preview = ({ level, points }) => view.level(fromBase64(points, PLY), (count) => `Level ${level}: ${count} points shown`);
    const followed = await session.requestAsJob("v1/reconstruct", sent, preview);
    const { answer } = followed;
    job = followed.job;
    const glb = fromBase64(answer.file, GLB);
    const ply = await job.file(PLY);
    if (answer.points) await view.whole(glb, ply, () => describe(answer));
    else view.words.textContent = "No cell is occupied. Try a lower threshold.";
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

function describe({ points, queries, metric, bounds: [low, high] }) {
  const sides = low.map((value, axis) => (high[axis] - value).toPrecision(2));
  return `${points.toLocaleString("en")} points, ${queries.toLocaleString("en")} queries, ${sides.join(" × ")} ${metric ? "m" : "median depths"}; estimated points are tinted blue`;
}

/** The command has one option for the focal length and its like. */
function flags({ fx, fy, cx, cy, ...others }) {
  if (fx === undefined) return others;
  const middle = cx === undefined || cy === undefined ? [] : [cx, cy];
  return { ...others, intrinsics: [fx, fy ?? fx, ...middle].join(",") };
}
