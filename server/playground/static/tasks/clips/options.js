// What may be asked of a bundle that labels clips or sound: the controls that it understands, and what they come to.

import { field, h, select } from "../../dom.js";

const USES = [
  ["", "automatic"],
  ["sound", "sound"],
  ["sight", "video"],
];

export class ClipOptions {
  #model = null;

  constructor(onchange) {
    this.topK = number("", { min: 1, step: 1, value: "5" });
    this.merge = select([], "", { onchange: () => this.#arrange() });
    this.tokens = number("", { min: 0, step: 1, value: "8" });
    this.tokensSight = number("as for the sound", { min: 0, step: 1 });
    this.views = number("bundle's default", { min: 1, max: 30, step: 1 });
    this.crops = select([["", "bundle's default"], ["1", "1, the centre"], ["3", "3, along the longer side"]], "");
    this.windows = number("all that fit", { min: 1, max: 12, step: 1 });
    this.use = select(USES, "", { onchange: () => (this.#arrange(), onchange()) });
    this.start = number("start", { min: 0, step: "any" });
    this.end = number("end", { min: 0, step: "any" });
    this.fields = {
      merge: field("Token merging", this.merge),
      tokens: field("Tokens to merge", this.tokens, "in each block"),
      tokensSight: field("Video tokens to merge", this.tokensSight, "in each block"),
      use: field("Classify by", this.use),
      views: field("Views", this.views, "of the video, evenly spread"),
      crops: field("Crops", this.crops, "of each view"),
      windows: field("Windows", this.windows, "of sound, consecutive"),
    };
    const { merge, tokens, tokensSight, use, views, crops, windows } = this.fields;
    const part = [field("Start, in seconds", this.start), field("End, in seconds", this.end)];
    this.element = h("div", { class: "fields" }, field("Labels", this.topK), merge, tokens, tokensSight, use, views, crops, windows, ...part);
  }

  /** The controls that a model understands, as GET /v1/models lists it. */
  fit(model) {
    this.#model = model;
    const { ladder, default_rung: rung, labels } = model;
    this.topK.max = labels;
    if (Number(this.topK.value) > labels) this.topK.value = labels;
    const rungs = ladder.map(({ name, throughput }) => [name, throughput ? `${name}: up to ${throughput.toFixed(2)}× as fast` : name]);
    const merges = [...rungs, ["off", "off"], ["tokens", "a number in each block"]];
    this.merge.replaceChildren(...merges.map(([value, text]) => h("option", { value }, text)));
    this.merge.value = rung ?? "off";
    this.use.value = "";
    this.#arrange();
  }

  get sees() {
    return this.#model.inputs.some(({ name }) => name === "video");
  }

  get hears() {
    return this.#model.inputs.some(({ name }) => name === "audio");
  }

  /** Whether it goes by sound and sight together. */
  get fuses() {
    return this.sees && this.hears && this.#model.inputs.some(({ name, required }) => name === "video" && required);
  }

  /** Whether its answer is traced: what does not merge has nothing to show. */
  get traces() {
    if (!this.#model.merges || this.merge.value === "off") return false;
    return this.merge.value !== "tokens" || Number(this.tokens.value) > 0 || Number(this.#sight) > 0;
  }

  /** Tokens of the video that merge in each block; "": as of the sound, or as the rung says. */
  get #sight() {
    return this.fuses && this.merge.value === "tokens" ? this.tokensSight.value : "";
  }

  /** "sound", "sight" or "both", by what there is. */
  used(clip, sound) {
    if (this.fuses) return "both";
    if (!this.hears || !this.sees) return this.hears ? "sound" : "sight";
    return this.use.value || (sound ? "sound" : "sight");
  }

  /** Why these files cannot be asked about, or "". clip, sound: whether they are there. */
  lacks(clip, sound) {
    const { name } = this.#model;
    if (!clip && !sound) return this.hears ? (this.sees ? "Choose a clip, a sound, or both." : "Choose a sound.") : "Choose a clip, or run the sample.";
    if (!this.hears && !clip) return `${name} classifies clips: choose a clip, or another model.`;
    if (!this.sees && !sound) return `${name} classifies sound: choose a sound, or another model.`;
    if (this.fuses && !clip) return `${name} uses video and sound together: also choose a clip, or choose another model.`;
    if (this.used(clip, sound) === "sight" && !clip) return "No clip is chosen: choose one, or classify by sound.";
    if (this.sees && this.hears && !this.fuses && clip && sound && !this.use.value) return `${name} classifies by sound or by video: choose one of them.`;
    return "";
  }

  /** name → value. */
  asked(clip, sound) {
    const used = this.used(clip, sound);
    const options = { top_k: Number(this.topK.value) || 5 };
    if (this.#model.merges) options.merge = this.merge.value === "tokens" ? Number(this.tokens.value) : this.merge.value;
    if (this.#sight) options.merge_sight = Number(this.#sight);
    if (this.use.value && !this.fuses) options.use = this.use.value;
    const seen = used === "sight" ? [["views", this.views], ...(this.hears ? [] : [["crops", this.crops]])] : [];
    const heard = used === "sight" ? [] : [["windows", this.windows]];
    for (const [name, control] of [...seen, ...heard, ["start_s", this.start], ["end_s", this.end]])
      if (control.value) options[name] = Number(control.value);
    return options;
  }

  /** Restores the input of a job that was started before the page was reloaded. */
  restore(options) {
    this.topK.value = options.top_k;
    const named = [...this.merge.options].some(({ value }) => value === options.merge);
    if (options.merge !== undefined) this.merge.value = named ? options.merge : "tokens";
    if (!named) this.tokens.value = options.merge ?? "8";
    this.tokensSight.value = options.merge_sight ?? "";
    this.use.value = options.use ?? "";
    for (const [name, control] of [["views", this.views], ["crops", this.crops], ["windows", this.windows], ["start_s", this.start], ["end_s", this.end]])
      control.value = options[name] ?? "";
    this.#arrange();
  }

  #arrange() {
    const { merge, tokens, tokensSight, use, views, crops, windows } = this.fields;
    merge.hidden = !this.#model.merges;
    tokens.hidden = merge.hidden || this.merge.value !== "tokens";
    tokensSight.hidden = tokens.hidden || !this.fuses;
    use.hidden = !this.sees || !this.hears || this.fuses;
    views.hidden = !this.sees || this.fuses || this.use.value === "sound";
    crops.hidden = !this.sees || this.hears;
    windows.hidden = !this.hears || this.use.value === "sight";
  }
}

const number = (placeholder, range) => h("input", { type: "number", placeholder, inputMode: "decimal", ...range });
