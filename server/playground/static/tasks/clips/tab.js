// Clips and sound: what is to be seen and heard, its labels, and their scores over time.

import { getJson } from "../../api.js";
import { bars } from "../../score_bars.js";
import { bytes, h, save } from "../../dom.js";
import { fileInput } from "../../file_input.js";
import { FileRejected, checkFile, checkPixels, checkDuration, kindsOf } from "../../file_checks.js";
import { callsOf, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { ClipOptions } from "./options.js";
import { lacking } from "./missing_bundle.js";
import { factsOf } from "../media_metadata.js";
import { Player } from "./player.js";
import { RemainingTokensView } from "./remaining_tokens.js";
import { Scores } from "./score_chart.js";
import { SoundStrip } from "./sound_strip.js";

const SAMPLES = [
  { name: "otters.mp4", thumbnail: "otters.png", label: "An otter on a rock; the camera zooms in" },
  { name: "colosseum.mp4", thumbnail: "colosseum.png", label: "The arches of the Colosseum; the camera pans" },
  { name: "lake.mp4", thumbnail: "lake.png", label: "Mountains behind a lake; the camera shakes" },
  { name: "figures.mp4", thumbnail: "figures.png", label: "Two drawn figures, one walking and one waving" },
];
const SOUNDS = [
  ["accordion", "An accordion"],
  ["pizzicato-strings", "Plucked strings"],
  ["trumpet", "A trumpet"],
  ["acoustic-guitar", "An acoustic guitar"],
  ["snare-drum", "A snare drum"],
].map(([name, said]) => ({ name: `${name}.flac`, thumbnail: `${name}.png`, label: `${said}, a note that the starter was not trained on`, sound: true }));
const PARTS = { video: "clip", audio: "sound" }; // part → kind of its file
const MEL_BINS = 128; // of a model that does not say

export function mount(panel, models, folders) {
  if (!models.length) {
    panel.append(lacking(folders));
    return { run() {}, stop() {}, take() {}, resume() {} };
  }
  return filled(panel, models);
}

function filled(panel, models) {
  const files = { video: null, audio: null };
  let shown = { video: null, audio: null }; // those that play
  const specs = new Map(); // model → its spec
  const limits = Object.fromEntries(
    Object.keys(PARTS).map((name) => [name, models.flatMap(({ inputs }) => inputs).find((part) => part.name === name)]),
  );
  const runner = new TaskRunner("clips", work, { onstop: stopped, restore });
  const player = new Player(() => follow());
  const strip = new SoundStrip((share) => player.seek(share * player.duration));
  const scores = new Scores((seconds) => player.seek(seconds));
  const remaining = new RemainingTokensView();
  const labels = h("div");
  const state = h("p", { class: "caption" });
  const below = h("div");
  const chosen = h("ul", { class: "chips", "aria-label": "Chosen files" });
  const options = new ClipOptions(() => fit());
  const model = new ModelChoice(models, () => {
    options.fit(model.chosen);
    fit();
    drawSound(files.video, files.audio);
  });
  const most = Object.entries(limits).filter(([, part]) => part);
  const told = most.map(([name, part]) => `a ${PARTS[name]} of at most ${part.max_seconds} s and ${bytes(part.max_bytes)}`).join(" and ");
  const input = fileInput(panel, {
    samples: [...(limits.video ? SAMPLES : []), ...(limits.audio ? SOUNDS : [])],
    stage: h("div", {}, chosen, h("p", { class: "caption" }, `This service accepts ${told}.`)),
    invitation: limits.video && limits.audio ? "A clip, a sound, or both" : limits.video ? "A clip" : "A sound",
    accept: "video/*,audio/*,.mkv,.avi,.gif,.flac,.ogg,.opus,.aif,.aiff,.caf",
    multiple: true,
    block: (reason) => runner.block(reason),
    onfile: choose,
    onsample: () => runner.runAgain(),
  });
  runner.take = input.receive;
  runner.first = input.first;
  workbench(panel, {
    input: input.element,
    result: h("div", { class: "answers" }, player.element, labels, state, scores.element, strip.element, remaining.element, below),
    settings: h("div", { class: "fields" }, model.element, options.element),
    runner,
  });
  options.fit(model.chosen);
  fit();
  return runner;

  /** Whether it can run, with these files and this model. */
  function fit() {
    return runner.block(options.lacks(Boolean(files.video), Boolean(files.audio)));
  }

  async function choose(given, sample = null) {
    const [part, facts] = await partOf(given);
    await checkFile(given, limits[part] ?? most[0][1], Object.values(PARTS));
    const limit = limits[part];
    if (!limit) throw new FileRejected(`${given.name} is a ${PARTS[part]}, which no served model accepts.`);
    if (part === "video" && facts) checkPixels(given.name, facts.width, facts.height, limit);
    if (facts) checkDuration(given.name, facts.duration, limit);
    if (sample) Object.assign(files, { video: null, audio: null });
    await put(part, given, Boolean(sample) && !sample.sound);
  }

  /** silent: whether nothing is to be heard. */
  async function put(part, file, silent = false) {
    files[part] = file;
    takeModel(silent);
    runner.changed();
    chosen.replaceChildren(...Object.entries(files).filter(([, one]) => one).map(([name, one]) => chip(name, one)));
    if (!runner.busy) {
      forget();
      runner.shows("");
      await load(files.video, files.audio);
    }
    fit();
  }

  function chip(part, file) {
    const name = file.name || `pasted ${PARTS[part]}`;
    return h("li", {}, `${PARTS[part]}: ${name}`, h("button", { type: "button", "aria-label": `Remove ${name}`, onclick: () => put(part, null) }, "×"));
  }

  /** The first model that takes what is there, unless the chosen one does. */
  function takeModel(silent) {
    const there = Object.keys(PARTS).filter((part) => files[part]);
    const takes = ({ inputs }) =>
      !(silent && inputs.some(({ name }) => name === "audio")) &&
      there.every((part) => inputs.some(({ name }) => name === part)) &&
      inputs.every(({ name, required }) => !required || there.includes(name));
    const fitting = models.find(takes);
    if (there.length && !takes(model.chosen) && fitting) model.take(`${fitting.name}@${fitting.version}`);
  }

  /** What can be shown of files before anything is asked. */
  async function load(clip, sound) {
    shown = { video: clip, audio: sound };
    await player.load(clip, sound);
    await drawSound(clip, sound);
  }

  /** A sound, or that of a clip where the model hears it. */
  async function drawSound(clip, sound) {
    const { sound: heard } = await specOf(model.value);
    await strip.load(sound ?? (options.hears ? clip : null), { seconds: player.duration, bins: heard?.mel_bins ?? MEL_BINS, certain: Boolean(sound) });
  }

  function follow() {
    scores.at(player.time);
    strip.at(player.time / player.duration);
  }

  function forget() {
    state.textContent = "";
    labels.replaceChildren();
    below.replaceChildren();
    scores.clear();
    remaining.clear();
  }

  function stopped(words) {
    scores.ended();
    state.textContent = words;
  }

  /** Restores the input of a job that was started before the page was reloaded. */
  async function restore({ parts, options: asked }) {
    model.take(asked.model);
    for (const [part, blob] of parts) await put(part, blob);
    options.restore(asked);
    fit();
    input.filled();
  }

  function asked() {
    const [clip, sound] = [Boolean(files.video), Boolean(files.audio)];
    const used = options.used(clip, sound);
    const wanted = used === "sight" ? ["video"] : used === "sound" && sound ? ["audio"] : ["video", "audio"];
    const parts = wanted.filter((part) => files[part]).map((part) => [part, files[part], files[part].name || PARTS[part]]);
    const traced = options.traces ? { trace: true } : {};
    return { parts, options: { model: model.value, ...options.asked(clip, sound), timeline: true, ...traced } };
  }

  async function work(session) {
    const sent = session.sent ?? asked();
    const file = Object.fromEntries(sent.parts.map(([part, blob]) => [part, blob]));
    const heard = "audio" in file || sent.options.use === "sound" || options.fuses;
    const title = sent.parts.map(([, , name]) => name).join(" and ");
    forget();
    session.shows(title);
    if (sent.parts.some(([part, blob]) => blob && blob !== shown[part])) await load(files.video, files.audio);
    const spec = await specOf(sent.options.model);
    const unit = heard ? "Window" : "View";
    const show = ({ predictions, timeline = [] }, running) => {
      player.known = Math.max(1, ...timeline.map(({ end_s: end }) => end));
      labels.replaceChildren(bars(predictions));
      scores.show(predictions, timeline, player.duration, unit, running);
      state.textContent = running ? `The mean of ${timeline.length} ${unit.toLowerCase()}${timeline.length === 1 ? "" : "s"} so far` : "";
      follow();
    };
    const { job, answer } = await session.requestAsJob("v1/classify", sent, (preview) => show(preview, true));
    job.forget(); // its answer is here
    const [result] = answer.results;
    show(result, false);
    if (result.timeline?.[0].trace)
      await remaining.show(result.timeline, {
        tokens: result.merging.tokens_in,
        spec,
        crops: result.clip?.crops ?? 1,
        file: file.video,
        mel: strip.mel,
        unit,
      });
    below.replaceChildren(
      h("p", { class: "caption" }, facts(result)),
      report(answer, calls(sent), [
        ["Download JSON", () => save(new Blob([JSON.stringify(answer)], { type: "application/json" }), "labels.json")],
        ["Download CSV", () => save(new Blob([csv(result)], { type: "text/csv" }), "scores.csv")],
      ]),
    );
    if (sent.parts.some(([part, blob]) => files[part] !== blob)) runner.changed();
  }

  async function specOf(id) {
    if (!specs.has(id)) specs.set(id, (await getJson(`v1/models/${id}`)).spec);
    return specs.get(id);
  }
}

/** The part that a file is for, and what the browser knows of it. */
async function partOf(file) {
  const kinds = await kindsOf(file);
  const facts = kinds.some((kind) => Object.values(PARTS).includes(kind)) ? await factsOf(file) : null;
  if (facts) return [facts.width ? "video" : "audio", facts];
  return [kinds.includes("sound") && !file.type.startsWith("video/") ? "audio" : "video", null];
}

function facts({ clip, sound, merging }) {
  const seen = clip && `${clip.views} ${clip.views === 1 ? "view" : "views"} of ${clip.frames} frames${clip.crops > 1 ? `, ${clip.crops} crops each` : ""}`;
  const heard = sound && `${sound.windows} ${sound.windows === 1 ? "window" : "windows"} of sound at ${sound.sample_rate / 1000} kHz`;
  const left = merging && `${merging.tokens_out} of ${merging.tokens_in} tokens left`;
  return [seen, heard, left].filter(Boolean).join("; ");
}

function calls({ parts, options }) {
  const { trace, ...named } = options;
  const files = Object.fromEntries(parts.map(([part, , name]) => [part, name]));
  return callsOf("classify", files, named, {
    curlOnly: trace ? { trace } : {},
    command: Object.fromEntries(Object.entries(named).map(([option, value]) => [option.replace(/_s$/, ""), value])),
    byName: true,
    python: "print(result.label, result.score)",
  });
}

/** A row for each view or window and label. */
function csv({ timeline = [] }) {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const rows = timeline.flatMap(({ start_s, end_s, predictions }) =>
    predictions.map(({ label, index, score }) => [start_s, end_s, index, quoted(label), score].join(",")),
  );
  return ["start_s,end_s,index,label,score", ...rows, ""].join("\n");
}
