// The frames of one inpainting: the picture before, every preview in its mask, the picture after. One slider goes through time, one compares.

import { h } from "../../dom.js";

export class Frames {
  #frames = []; // {url, words, box}; box: where a preview lies in the picture, null for the whole picture
  #shown = 0; // counts what was to be shown: images arrive later
  #before = "";

  constructor() {
    this.after = h("img", { alt: "", class: "after" });
    this.before = h("img", { alt: "", class: "before" });
    this.filling = h("canvas", { role: "img" }); // a preview, where the mask is
    this.stage = h("div", { class: "stage" }, this.after, this.filling, this.before);
    this.words = h("p", { class: "caption" }, "The filled image appears here, step by step.");
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
    this.#before = "";
    this.#shown++;
    this.stage.hidden = this.splitField.hidden = this.timeField.hidden = true;
    this.words.textContent = "The filled image appears here, step by step.";
  }

  /** bitmap: the picture before, which gives the frame its shape; mask: of its size, as it is now. */
  begin(bitmap, mask) {
    this.clear();
    this.mask = h("canvas", { width: mask.width, height: mask.height });
    this.mask.getContext("2d").putImageData(mask.paint([0, 0, mask.width, mask.height], [0, 0, 0, 255], [0, 0, 0, 0]), 0, 0);
    [this.filling.width, this.filling.height] = [mask.width, mask.height];
    const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.#before = canvas.toDataURL();
    this.stage.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
    this.before.src = this.after.src = this.#before;
    this.before.hidden = this.filling.hidden = true;
    this.stage.hidden = false;
    this.stage.classList.toggle("pixels", Math.max(bitmap.width, bitmap.height) <= 256);
    this.words.textContent = "Before";
  }

  /** A picture of `box`, [x, y, width, height] in pixels of the whole. Only what the mask covers is drawn: the rest stays as it is. */
  preview(step, box, blob) {
    if (this.stage.hidden) return;
    this.#add({ url: URL.createObjectURL(blob), words: `Step ${step}: preview`, box });
  }

  done(blob, steps) {
    this.stage.hidden = false;
    this.#add({ url: URL.createObjectURL(blob), words: steps ? `After ${steps} ${steps === 1 ? "step" : "steps"}` : "Filled", box: null });
    this.timeField.hidden = this.#frames.length < 2;
  }

  /** words: empty where it failed. */
  stopped(words) {
    if (this.#frames.length) this.words.textContent = words || "The last step received";
    this.timeField.hidden = this.#frames.length < 2;
  }

  #add(frame) {
    this.#frames.push(frame);
    this.time.max = this.#frames.length - 1;
    this.time.value = this.#frames.length - 1;
    this.#show(this.#frames.length - 1);
  }

  async #show(index) {
    const turn = ++this.#shown;
    const { url, words, box } = this.#frames[index];
    this.words.textContent = words;
    this.time.setAttribute("aria-valuetext", words);
    if (box && !(await this.#draw(url, box, turn))) return; // something else is shown by now
    this.filling.hidden = !box;
    this.filling.setAttribute("aria-label", words);
    this.after.src = box ? this.#before : url;
    this.after.alt = box ? "The image" : words;
    this.splitField.hidden = this.before.hidden = Boolean(box) || !this.#before;
    if (!box) this.#cut();
  }

  /** Resolves with whether it is still to be shown. */
  async #draw(url, [x, y, width, height], turn) {
    const image = new Image();
    image.src = url;
    await image.decode().catch(() => {});
    if (turn !== this.#shown) return false;
    const context = this.filling.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(image, x, y, width, height);
    context.globalCompositeOperation = "destination-in";
    context.drawImage(this.mask, 0, 0);
    return true;
  }

  #cut() {
    this.before.style.clipPath = `inset(0 ${100 - Number(this.split.value)}% 0 0)`;
    this.split.setAttribute("aria-valuetext", `${this.split.value} % before`);
  }
}
