// The tokens that remain of each view of a clip, or of each window of a sound, over what the network was given.

import { field, h, select } from "../../dom.js";
import { framesOf, layoutOf } from "./frame_grid.js";
import { FRAMES_S, drawMel } from "./mel_spectrogram.js";
import { tokenView } from "../token_view.js";

const [WIDTH, HEIGHT] = [1024, 320]; // pixels of a spectrogram

export class RemainingTokensView {
  #views = [];
  #state = { sound: { mode: "blend" }, sight: {} };
  #drawing = 0;

  constructor() {
    this.select = select([], "", { onchange: () => this.#draw() });
    this.drawn = h("div", { class: "answers" });
    this.element = h("div", { class: "answers", hidden: true }, field("Tokens of", this.select), this.drawn);
  }

  clear() {
    this.#views = [];
    this.#drawing += 1;
    this.element.hidden = true;
    this.drawn.replaceChildren();
  }

  /** timeline: with traces, of an answer; tokens: how many enter; spec: of the bundle; crops: of each view; file: the clip; mel: of the sound. */
  async show(timeline, { tokens, spec, crops, file, mel, unit }) {
    this.#views = timeline;
    Object.assign(this, { tokens, spec, crops, file, mel });
    this.element.hidden = false;
    this.select.replaceChildren(
      ...timeline.map(({ start_s: start, end_s: end }, index) =>
        h("option", { value: String(index) }, `${unit} ${index + 1}, ${start.toFixed(1)} to ${end.toFixed(1)} s`),
      ),
    );
    await this.#draw();
  }

  async #draw() {
    const drawing = (this.#drawing += 1);
    const view = this.#views[Number(this.select.value)];
    const halves = [view.trace, view.trace_sight].filter(Boolean);
    const patches = halves.reduce((sum, { grid }) => sum + grid.reduce((product, count) => product * count), 0);
    const special = (this.tokens - patches) / halves.length;
    const drawn = [];
    for (const trace of halves)
      drawn.push(trace.grid.length === 3 ? await this.#seen(trace, view, special) : this.#heard(trace, view, special));
    if (drawing === this.#drawing) this.drawn.replaceChildren(...drawn);
  }

  #heard({ grid: [times, bins], layers }, { start_s: start }, special) {
    const heard = h("canvas");
    const mel = this.mel ?? { frames: 0, bins: this.spec.sound.mel_bins, levels: [] };
    drawMel(heard, mel, Math.round(start * FRAMES_S), this.spec.sound.frames);
    const seen = h("canvas", { width: WIDTH, height: HEIGHT });
    seen.getContext("2d", { willReadFrequently: true }).drawImage(heard, 0, 0, WIDTH, HEIGHT);
    const order = Array.from({ length: bins * times }, (_, place) => [place % times, bins - 1 - Math.floor(place / times)]);
    return tokenView({
      title: "Tokens of the sound",
      seen,
      grid: [bins, times],
      layers: layers.map((ids) => order.map(([time, bin]) => ids[time * bins + bin])),
      special,
      unit: "spectrogram",
      state: this.#state.sound,
    });
  }

  async #seen({ grid: [times, rows, columns], layers }, { frames_s: seconds }, special) {
    const each = seconds.length / times; // frames that a patch spans: the first one is shown
    const shown = Array.from({ length: times }, (_, time) => seconds[time * each]);
    const { preprocess } = this.spec;
    const centre = this.crops === 3 ? { ...preprocess, short_side: preprocess.image_size } : preprocess; // three squares lie on the short side as it is
    const { across, down } = layoutOf(times);
    const order = Array.from({ length: down * rows * across * columns }, (_, place) => {
      const [x, y] = [place % (across * columns), Math.floor(place / (across * columns))];
      const time = Math.floor(y / rows) * across + Math.floor(x / columns);
      return time < times ? (time * rows + (y % rows)) * columns + (x % columns) : null;
    });
    return tokenView({
      title: "Tokens of the frames",
      seen: await framesOf(this.file, shown, centre),
      grid: [down * rows, across * columns],
      tile: [rows, columns],
      layers: layers.map((ids) => order.map((patch) => (patch === null ? null : ids[patch]))),
      special,
      unit: "clip",
      state: this.#state.sight,
    });
  }
}
