// The frames of one inpainting: the picture before, every preview, the picture after. One slider goes through time, one compares.

import { h } from "../dom.js";

export class Frames {
  #frames = []; // {url, words, whole}
  #before = "";

  constructor() {
    this.after = h("img", { alt: "", class: "after" });
    this.before = h("img", { alt: "", class: "before" });
    this.stage = h("div", { class: "stage" }, this.after, this.before);
    this.words = h("p", { class: "caption" }, "The filled picture appears here, step by step.");
    this.split = h("input", { type: "range", min: 0, max: 100, value: "0", oninput: () => this.#cut() });
    this.time = h("input", { type: "range", min: 0, max: 0, value: "0", oninput: () => this.#show(Number(this.time.value)) });
    this.splitField = h("label", { class: "slide", hidden: true }, h("span", {}, "Before"), this.split);
    this.timeField = h("label", { class: "slide", hidden: true }, h("span", {}, "Step"), this.time);
    this.element = h("figure", { class: "frames", hidden: false }, this.stage, this.words, this.splitField, this.timeField);
    this.clear();
  }

  clear() {
    for (const { url } of this.#frames) URL.revokeObjectURL(url);
    this.#frames = [];
    this.stage.hidden = this.splitField.hidden = this.timeField.hidden = true;
    this.words.textContent = "The filled picture appears here, step by step.";
  }

  /** bitmap: the picture before, which gives the frame its shape. */
  begin(bitmap) {
    this.clear();
    const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.#before = canvas.toDataURL();
    this.stage.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
    this.before.src = this.after.src = this.#before;
    this.before.hidden = true;
    this.stage.hidden = false;
    this.stage.classList.toggle("pixels", Math.max(bitmap.width, bitmap.height) <= 256);
    this.words.textContent = "Before";
  }

  preview(step, blob) {
    this.#add({ url: URL.createObjectURL(blob), words: `Step ${step}: what the network sees`, whole: false });
  }

  done(blob, steps) {
    this.#add({ url: URL.createObjectURL(blob), words: `After ${steps} ${steps === 1 ? "step" : "steps"}`, whole: true });
    this.timeField.hidden = this.#frames.length < 2;
  }

  /** words: empty where it failed. */
  stopped(words) {
    if (this.#frames.length) this.words.textContent = words || "The last step that arrived";
    this.timeField.hidden = this.#frames.length < 2;
  }

  #add(frame) {
    this.#frames.push(frame);
    this.time.max = this.#frames.length - 1;
    this.time.value = this.#frames.length - 1;
    this.#show(this.#frames.length - 1);
  }

  #show(index) {
    const { url, words, whole } = this.#frames[index];
    this.after.src = url;
    this.after.alt = this.words.textContent = words;
    this.time.setAttribute("aria-valuetext", words);
    this.splitField.hidden = this.before.hidden = !whole;
    if (whole) this.#cut();
  }

  #cut() {
    this.before.style.clipPath = `inset(0 ${100 - Number(this.split.value)}% 0 0)`;
    this.split.setAttribute("aria-valuetext", `${this.split.value} % before`);
  }
}
