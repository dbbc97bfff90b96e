// Search: pictures sorted by a sentence or by another picture. Vectors stay in the page: each picture is embedded once for a model.

import { Problem } from "../../api.js";
import { fetchSample } from "../../file_input.js";
import { field, h, save } from "../../dom.js";
import { FileRejected } from "../../file_checks.js";
import { partOf, pictureInput } from "../../image_input.js";
import { BASE, formField, quoted, report } from "../../result_footer.js";
import { TaskRunner } from "../../task_runner.js";
import { ModelChoice, workbench } from "../../tab_layout.js";
import { Found } from "./image_grid.js";
import { kept, thumbnail } from "./thumbnails.js";

const AT_ONCE = 4; // requests: the service makes batches of them
const MAX_PICTURES = 2000; // their thumbnails take 100 kB each
const SORTED_EVERY_MS = 300;
const REFUSED = [413, 415, 422]; // a picture's own fault: the others go on
const SAMPLES = ["daisy", "ladybug", "umbrella", "padlock", "mug", "duck", "brazil", "kenya", "nepal", "chad", "seychelles"];

/** Fills a section, for all models that give vectors of pictures. Returns its TaskRunner. */
export function search(section, models) {
  let pictures = []; // {blob, name, small, failed?}
  let example = null; // the picture to compare with, in place of a sentence
  let question = null; // {model, vector, words} of the last run
  let drawing = 0; // a frame that is asked for
  const vectors = new Map(models.map((model) => [`${model.name}@${model.version}`, new Map()])); // of each model, by picture

  const count = h("p", { class: "caption" });
  const folder = h("input", { type: "file", webkitdirectory: "", class: "unseen", onchange: () => input.receive(folder.files) });
  const sentence = h("input", {
    type: "search",
    onkeydown: (event) => event.key === "Enter" && runner.run(),
    oninput: () => compareWith(null),
  });
  const byText = field("A sentence", sentence);
  const file = h("input", { type: "file", accept: "image/*", class: "unseen", onchange: takeExample });
  const shown = h("div", { class: "example", hidden: true });
  const note = h("p", { class: "caption" });
  const model = new ModelChoice(models, fit);
  const found = new Found((picture) => (compareWith(picture), runner.runAgain()));
  const told = h("p", { class: "caption told", role: "status" });
  const below = h("div", {});
  const result = h("div", { class: "answers" }, h("p", { class: "hint" }, "Your images appear here, best matches first."));
  const runner = new TaskRunner("words", work, { onstop: () => sort() });
  const input = pictureInput(section, {
    part: partOf(models, "image"),
    samples: [],
    stage: count,
    block: (reason) => runner.block(reason),
    onpicture: add,
    invitation: "Images, or a folder, to search",
    multiple: true,
  });
  runner.take = input.receive;
  workbench(section, {
    input: h(
      "div",
      { class: "fields" },
      input.element,
      h(
        "p",
        { class: "buttons" },
        h("label", { class: "button" }, "Choose a folder", folder),
        h("button", { type: "button", onclick: () => runner.aside(takeSamples) }, "Use the samples"),
        h("button", { type: "button", onclick: clear }, "Remove all"),
      ),
      byText,
      h("p", { class: "buttons" }, h("label", { class: "button" }, "Compare with an image", file)),
      note,
      shown,
    ),
    result,
    settings: h("div", { class: "fields" }, model.element),
    runner,
  });
  fit();
  return runner;

  function fit() {
    const reads = model.chosen.text !== null;
    byText.hidden = !reads;
    note.textContent = reads ? "" : `${model.value} does not support texts: compare with an image, or click one of yours.`;
    changed();
  }

  function missing() {
    if (!pictures.length) return "Choose images or a folder, or use the samples.";
    if (example || asked()) return "";
    return model.chosen.text ? "Type a sentence, or compare with an image." : "Compare with an image.";
  }

  function asked() {
    return model.chosen.text ? sentence.value.trim() : "";
  }

  function changed() {
    runner.changed();
    runner.block(missing());
  }

  function add(given) {
    if (pictures.length === MAX_PICTURES) throw new FileRejected(`${given.name} was not added: the limit is ${MAX_PICTURES} images.`);
    pictures.push(kept(given));
    count.textContent = `${pictures.length} ${pictures.length === 1 ? "image" : "images"}`;
    drawing ||= requestAnimationFrame(sort);
    changed();
  }

  async function takeSamples() {
    input.receive(await Promise.all(SAMPLES.map((name) => fetchSample(`${name}.png`))));
  }

  function clear() {
    pictures = [];
    for (const known of vectors.values()) known.clear();
    count.textContent = "";
    compareWith(null);
    sort();
  }

  async function takeExample() {
    const [given] = file.files;
    const bitmap = await createImageBitmap(given).catch(() => null);
    file.value = "";
    compareWith(kept({ blob: given, name: given.name, bitmap }));
  }

  /** null: with what the sentence says. */
  function compareWith(picture) {
    example = picture;
    if (picture) sentence.value = "";
    shown.hidden = !picture;
    shown.replaceChildren(
      ...(picture
        ? [
            thumbnail(picture.small, picture.name),
            h("span", { class: "caption" }, `similar to ${picture.name}`),
            h("button", { type: "button", "aria-label": "Remove the image to compare with", onclick: () => compareWith(null) }, "×"),
          ]
        : []),
    );
    changed();
  }

  /** Sorts what there are vectors of, by the last question. */
  function sort() {
    drawing = 0;
    const known = question ? vectors.get(question.model) : new Map();
    const ranked = pictures.map((picture) => ({ picture, cosine: known.has(picture) ? dot(known.get(picture), question.vector) : null }));
    ranked.sort((a, b) => (b.cosine ?? -2) - (a.cosine ?? -2));
    found.show(ranked);
    const failed = pictures.filter((picture) => picture.failed).length;
    const done = ranked.filter(({ cosine }) => cosine !== null).length;
    told.textContent = question
      ? `${done} of ${pictures.length} images, sorted by the cosine of their vectors with that of ${question.words}${failed ? `, ${failed} failed` : ""}.`
      : "";
    told.hidden = !question;
    result.replaceChildren(...(pictures.length ? [told, found.element, below] : [h("p", { class: "hint" }, "Your images appear here.")]));
    return ranked;
  }

  async function work(session) {
    const id = model.value;
    const text = example ? null : asked();
    const words = text === null ? example.name : `“${text}”`;
    const parts = text === null ? [["image", example.blob, example.name]] : [];
    const options = { model: id, encoding: "base64", ...(text === null ? {} : { text }) };
    const answer = await session.ask("v1/embed", { parts, options });
    question = { model: id, vector: vectorOf(answer), words };
    below.replaceChildren();
    sort();
    await embedAll(session, id);
    const ranked = sort();
    below.replaceChildren(report(answer, callsOf(id, text, example?.name), [["Download CSV", () => save(csv(ranked), "found.csv")]]));
    session.shows(words);
  }

  /** Those that have no vector of this model yet, some at a time. */
  async function embedAll(session, id) {
    const known = vectors.get(id);
    const waiting = pictures.filter((picture) => !known.has(picture));
    const all = waiting.length;
    let done = 0;
    let sorted = performance.now();
    const one = async (picture) => {
      picture.failed = "";
      try {
        const parts = [["image", picture.blob, picture.name]];
        known.set(picture, vectorOf(await session.requestInBackground("v1/embed", { parts, options: { model: id, encoding: "base64" } })));
      } catch (error) {
        if (!(error instanceof Problem) || !REFUSED.includes(error.status)) throw error;
        picture.failed = error.message;
      }
      session.tell(++done, all, "images");
      if (performance.now() - sorted > SORTED_EVERY_MS) {
        sort();
        sorted = performance.now();
      }
    };
    const line = async () => {
      for (let next = waiting.shift(); next; next = waiting.shift()) await one(next);
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, line));
    } finally {
      waiting.length = 0; // where one stops, all do
    }
  }
}

function vectorOf({ embeddings: [encoded] }) {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);

function csv(ranked) {
  const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = ranked.filter(({ cosine }) => cosine !== null).map(({ picture, cosine }) => `${cell(picture.name)},${cosine}`);
  return new Blob([["name,cosine", ...rows, ""].join("\n")], { type: "text/csv" });
}

/** The vector that was asked for with curl; the same search in a folder with Python and the command. */
function callsOf(model, text, image) {
  const asked = text === null ? `-F ${quoted(`image=@${image}`)}` : formField("text", text);
  const python = text === null ? `image=${JSON.stringify(image)}` : JSON.stringify(text);
  const code = [
    "from opsin import Client\n",
    `with Client(${JSON.stringify(BASE)}) as client:`,
    `    gallery = client.gallery("photos", model=${JSON.stringify(model)})`,
    `    for match in gallery.search(${python}):`,
    "        print(match.cosine, match.path)\n",
  ].join("\n");
  const at = `--url ${quoted(BASE)}`;
  const question = text === null ? `--image ${quoted(image)}` : quoted(text);
  return {
    curl: ["curl", asked, `-F ${quoted(`model=${model}`)}`, quoted(`${BASE}/v1/embed`)].join(" \\\n  "),
    Python: code,
    Command: `opsin embed photos -o vectors.npz --model ${quoted(model)} ${at}\nopsin search vectors.npz ${question} ${at}`,
  };
}
