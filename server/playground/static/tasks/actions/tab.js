// Actions: a clip, the people in it, and who does what when.

import { bytes, field, h, save } from "../../dom.js";
import { fileInput } from "../../file_input.js";
import { checkFile, checkPixels, checkDuration } from "../../file_checks.js";
import { partOf } from "../../image_input.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { Clip } from "./clip_player.js";
import { PersonLanes } from "./person_lanes.js";
import { factsOf } from "../media_metadata.js";
import { People } from "./people.js";

const MP4 = "video/mp4";
const SAMPLES = [{ name: "figures.mp4", model: "actions", thumbnail: "figures.png", label: "Two drawn figures, one walking and one waving" }];

export function mount(panel, models) {
  let file = null;
  let job = null; // whose files can be had
  const people = new People();
  const lanes = new PersonLanes({
    onseek: (time) => clip.seek(time),
    onchange() {
      clip.draw();
      lanes.at(clip.time);
    },
  });
  const clip = new Clip({ ontime: (time) => lanes.at(time), people: () => lanes.shown(people.all), least: () => lanes.least });
  const below = h("div");
  const runner = new TaskRunner("actions", work, { onstop: stopped, restore });
  runner.block("Choose a clip, or run the sample.");
  const part = partOf(models, "video");
  const model = new ModelChoice(models);
  const [most, start, end] = [
    ["bundle's default", { min: 1, max: 50, step: 1 }],
    ["start", { min: 0, step: "any" }],
    ["end", { min: 0, step: "any" }],
  ].map(([placeholder, range]) => h("input", { type: "number", placeholder, inputMode: "decimal", ...range }));
  const detail = h("select", {}, ...["bundle's default", "fast", "standard", "high"].map((value, rank) => h("option", { value: rank ? value : "" }, value)));
  const name = h("p", { class: "caption" }, `This service accepts at most ${part.max_seconds} s and ${bytes(part.max_bytes)}.`);
  const input = fileInput(panel, {
    samples: SAMPLES,
    stage: name,
    invitation: "A clip of people",
    accept: "video/*,.mkv,.avi,.gif",
    block: (reason) => runner.block(reason),
    onfile: choose,
    onsample: () => runner.runAgain(),
  });
  runner.take = input.receive;
  runner.first = input.first;
  workbench(panel, {
    input: input.element,
    result: h("div", { class: "answers" }, clip.element, lanes.element, below),
    settings: h(
      "div",
      { class: "fields" },
      model.element,
      field("Maximum people", most, "tracked at once"),
      field("Detail", detail, "high also detects small people, and takes four times as long as fast"),
      field("Start, in seconds", start),
      field("End, in seconds", end),
    ),
    runner,
  });
  return runner;

  async function choose(given, sample = null) {
    await checkFile(given, part, ["clip"]);
    const facts = await factsOf(given);
    if (facts?.width) checkPixels(given.name, facts.width, facts.height, part);
    if (facts?.width) checkDuration(given.name, facts.duration, part);
    if (sample) model.take(sample.model);
    file = given;
    runner.changed();
    name.textContent = given.name;
    if (!runner.busy) {
      forget();
      runner.shows("");
      await clip.load(given);
    }
    runner.block("");
  }

  /** Restores the input of a job that was started before the page was reloaded. */
  async function restore({ parts: [[, blob]], options }) {
    model.take(options.model);
    [most.value, start.value, end.value] = [options.people, options.start_s, options.end_s].map((value) => value ?? "");
    detail.value = options.detail ?? "";
    await choose(blob);
    input.filled();
  }

  function stopped(words) {
    lanes.ended();
    if (words) clip.words.textContent = words;
  }

  function forget() {
    job?.forget();
    job = null;
    people.clear();
    lanes.clear();
    below.replaceChildren();
    clip.draw();
  }

  function show() {
    const known = people.all.flatMap(({ actions }) => actions.map(({ end_s: end }) => end));
    lanes.show(people.all, clip.duration || Math.max(1, ...known)); // of a clip that the browser cannot play it is told at the end
    lanes.at(clip.time);
    clip.draw();
  }

  function asked() {
    const options = { model: model.value };
    for (const [option, input] of [
      ["people", most],
      ["start_s", start],
      ["end_s", end],
    ])
      if (input.value) options[option] = Number(input.value);
    if (detail.value) options.detail = detail.value;
    return { parts: [["video", file, file.name]], options };
  }

  async function work(session) {
    const sent = session.sent ?? asked();
    const {
      parts: [[, blob, title]],
      options,
    } = sent;
    forget();
    session.shows(title);
    if (blob && blob !== clip.file) await clip.load(blob);
    lanes.begin();
    const before = clip.time;
    const followed = await session.requestAsJob("v1/actions", sent, (preview) => {
      people.add(preview.people);
      show();
      clip.follow(Math.max(...preview.people.flatMap(({ boxes }) => boxes.map(([time]) => time))));
    });
    const { answer } = followed;
    job = followed.job;
    lanes.ended();
    people.clear();
    people.add(answer.people);
    clip.describe(answer.video);
    show();
    clip.follow(before);
    clip.words.textContent = told(answer);
    const calls = callsOf("actions", { video: title }, options, {
      output: "annotated.mp4",
      headers: [`Accept: ${MP4}`],
      command: Object.fromEntries(Object.entries(options).map(([option, value]) => [option.replace(/_s$/, ""), value])),
      python: "for person in result.people:\n        print(person.person, person.actions)",
    });
    below.replaceChildren(
      report(answer, calls, [
        ["Download JSON", () => save(new Blob([JSON.stringify(answer)], { type: "application/json" }), "people.json")],
        ["Download MP4", () => runner.aside(async () => save(await job.file(MP4), "annotated.mp4"))],
      ]),
    );
  }
}

function told({ people, video, detail }) {
  const facts = `${video.width} × ${video.height}, ${video.duration_s.toFixed(1)} s, detail ${detail}`;
  if (people.length === 0) return `No people were detected in this clip (${facts}).`;
  return `${people.length} ${people.length === 1 ? "person" : "people"} in ${facts}`;
}
