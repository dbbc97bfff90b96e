// The spectrogram of a sound along the axis of time that the scores have; a click seeks.

import { h, shareAlong } from "../../dom.js";
import { FRAMES_S, drawMel, melOf } from "./mel_spectrogram.js";

export class SoundStrip {
  #file = null;

  /** onseek(share): of the whole time. */
  constructor(onseek) {
    this.mel = null;
    this.canvas = h("canvas", { class: "strip-image", role: "img", "aria-label": "The spectrogram of the sound, low frequencies at the bottom" });
    this.here = h("i", { class: "here", "aria-hidden": "true" });
    this.words = h("p", { class: "caption" });
    this.axis = h("div", { class: "axis-of-time", onclick: (event) => onseek(shareAlong(this.axis, event)) }, this.canvas, this.here);
    this.element = h("figure", { hidden: true }, h("h3", {}, "Spectrogram"), this.axis, this.words);
  }

  /** file: a sound, or a clip with one; null: none. seconds: of the axis; bins: as the network hears it; certain: whether it must have a sound. */
  async load(file, { seconds, bins, certain }) {
    this.#file = file;
    this.mel = null;
    this.axis.hidden = true;
    this.element.hidden = !file;
    if (!file) return;
    this.words.textContent = "Reading the sound";
    const mel = await melOf(file, bins);
    if (file !== this.#file) return; // another one has been chosen meanwhile
    this.mel = mel;
    this.words.textContent = mel ? `${(mel.frames / FRAMES_S).toFixed(1)} s, ${bins} mel bins` : certain ? "This browser cannot decode the sound." : "No sound in this clip.";
    this.axis.hidden = !mel;
    if (mel) drawMel(this.canvas, mel, 0, Math.max(mel.frames, Math.round(seconds * FRAMES_S)));
  }

  /** share: of the whole time. */
  at(share) {
    this.here.style.left = `${100 * share}%`;
  }
}
