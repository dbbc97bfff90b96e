// Paints a mask over a picture: by pointer, or by keys on the focused picture.

import { choice, h } from "../../dom.js";
import { show } from "../../image_input.js";
import { Mask } from "./mask.js";

const TINT = [124, 77, 255, 165];

/** onchange() hears of every finished change. `set(bitmap, mask)` begins with a picture; `mask` is null before. */
export class MaskPainter {
  mask = null;
  #tool = "brush";
  #from = null; // where the stroke or the box began, or was last
  #cursor = null; // of the keyboard
  #hover = null; // where the mouse is
  #boxTo = null; // where the box ends that is being drawn
  #corner = null; // where a box began by keys
  #problem = null; // with a mask file, told once
  #frame = 0;

  constructor(onchange) {
    this.onchange = onchange;
    this.picture = h("canvas", { role: "img", "aria-label": "The image" });
    this.overlay = h("canvas", {
      class: "overlay",
      tabindex: "0",
      role: "application",
      "aria-label": "Paint the area to fill. The arrow keys move the brush, with Shift further; Space paints.",
      onpointerdown: (event) => this.#down(event),
      onpointermove: (event) => this.#drag(event),
      onpointerup: () => this.#up(),
      onpointercancel: () => this.#up(),
      onpointerleave: () => ((this.#hover = null), this.#draw()),
      onkeydown: (event) => this.#key(event),
      onblur: () => ((this.#cursor = null), this.#draw()),
    });
    this.size = h("input", {
      type: "range",
      min: 1,
      max: 64,
      value: "10",
      "aria-label": "Brush radius in pixels",
      oninput: () => this.#label(),
    });
    this.radius = h("output", {}, "10 px");
    this.undo = this.#button("Undo", () => this.mask.undo());
    this.redo = this.#button("Redo", () => this.mask.redo());
    this.clear = this.#button("Clear", () => this.mask.change(() => this.mask.clear()));
    this.invert = this.#button("Invert", () => this.mask.change(() => this.mask.invert()));
    this.file = h("input", { type: "file", accept: "image/*", class: "unseen", onchange: () => this.#load() });
    this.words = h("p", { class: "caption", role: "status" });
    this.natural = h("input", { type: "checkbox", onchange: () => this.stage.classList.toggle("natural", this.natural.checked) });
    this.marker = h("div", { class: "marker", hidden: true });
    this.stage = h("div", { class: "painting", hidden: true }, h("div", { class: "layers" }, this.picture, this.overlay, this.marker));
    this.tools = h(
      "div",
      { class: "tools", hidden: true },
      choice(
        "Tool",
        [
          ["brush", "Brush"],
          ["eraser", "Eraser"],
          ["box", "Box"],
        ],
        "brush",
        (tool) => (this.#tool = tool),
      ),
      h("label", { class: "slide" }, h("span", {}, "Size"), this.size, this.radius),
      h(
        "div",
        { class: "buttons" },
        this.undo,
        this.redo,
        this.clear,
        this.invert,
        h("label", { class: "button" }, this.file, "Load mask …"),
      ),
      h("label", { class: "check" }, this.natural, h("span", {}, "Actual size")),
      this.words,
    );
  }

  /** Begins with a picture, and with a mask file if there is one. */
  async set(bitmap, file) {
    show(this.picture, bitmap);
    this.overlay.width = bitmap.width;
    this.overlay.height = bitmap.height;
    this.mask = new Mask(bitmap.width, bitmap.height);
    this.#cursor = null;
    const side = Math.max(bitmap.width, bitmap.height);
    this.size.max = Math.max(8, Math.round(side / 4));
    this.size.value = Math.max(2, Math.round(side / 20));
    this.#label();
    this.stage.hidden = this.tools.hidden = false;
    if (file) await this.#take(file);
    this.#changed();
  }

  #button(text, act) {
    return h("button", { type: "button", onclick: () => (act(), this.#changed()) }, text);
  }

  #label() {
    this.radius.textContent = `${this.size.value} px`;
  }

  async #load() {
    if (this.file.files[0]) await this.#take(this.file.files[0]);
    this.file.value = "";
    this.#changed();
  }

  async #take(file) {
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (bitmap?.width !== this.mask.width || bitmap?.height !== this.mask.height) {
      this.#problem = bitmap
        ? `The mask has ${bitmap.width} × ${bitmap.height} pixels, the image ${this.mask.width} × ${this.mask.height}.`
        : "This browser cannot read the mask.";
      return;
    }
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    this.mask.change(() => this.mask.load(context.getImageData(0, 0, bitmap.width, bitmap.height).data));
  }

  #at(event) {
    const box = this.overlay.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.mask.width, ((event.clientY - box.top) / box.height) * this.mask.height];
  }

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.overlay.focus();
    this.overlay.setPointerCapture(event.pointerId);
    this.#from = this.#at(event);
    this.#cursor = null;
    this.mask.begin();
    this.#reach(this.#from);
  }

  #drag(event) {
    if (event.pointerType === "mouse") this.#hover = this.#at(event);
    if (this.#from === null) return this.#later();
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.#reach(this.#at(part));
  }

  #up() {
    if (this.#from === null) return;
    if (this.#tool === "box") this.mask.box(...this.#from, ...this.#boxTo, 1);
    this.#from = this.#boxTo = null;
    this.mask.end();
    this.#changed();
  }

  /** The pointer has come so far. */
  #reach(to) {
    if (this.#tool === "box") this.#boxTo = to;
    else {
      this.mask.stroke(...this.#from, ...to, Number(this.size.value), this.#tool === "brush" ? 1 : 0);
      this.#from = to;
    }
    this.#later();
  }

  #key(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") (event.shiftKey ? this.redo : this.undo).click();
    else if (by) this.#move(by.map((step) => step * (event.shiftKey ? 10 : 1)));
    else if (event.key === " ") this.#stamp();
    else return;
    event.preventDefault();
  }

  #move([dx, dy]) {
    const [x, y] = this.#cursor ?? [this.mask.width / 2, this.mask.height / 2];
    this.#cursor = [Math.min(this.mask.width, Math.max(0, x + dx)), Math.min(this.mask.height, Math.max(0, y + dy))];
    this.#draw();
  }

  /** Space paints; with the box tool the first sets a corner, the second the other. */
  #stamp() {
    this.#cursor ??= [this.mask.width / 2, this.mask.height / 2];
    if (this.#tool !== "box") {
      this.mask.change(() => this.mask.stroke(...this.#cursor, ...this.#cursor, Number(this.size.value), this.#tool === "brush" ? 1 : 0));
    } else if (this.#corner) {
      this.mask.change(() => this.mask.box(...this.#corner, ...this.#cursor, 1));
      this.#corner = null;
    } else this.#corner = this.#cursor;
    this.#changed();
  }

  #changed() {
    const count = this.mask.count;
    this.undo.disabled = !this.mask.canUndo;
    this.redo.disabled = !this.mask.canRedo;
    this.clear.disabled = count === 0;
    this.words.textContent =
      this.#problem ?? `${count.toLocaleString("en")} of ${this.mask.pixels.length.toLocaleString("en")} pixels will be filled`;
    this.#problem = null;
    this.#draw();
    this.onchange(count);
  }

  #later() {
    this.#frame ||= requestAnimationFrame(() => ((this.#frame = 0), this.#draw()));
  }

  /** Only what has changed: photographs have many pixels. */
  #draw() {
    if (!this.mask) return;
    const dirty = this.mask.takeDirty();
    if (dirty) this.overlay.getContext("2d").putImageData(this.mask.paint(dirty, TINT, [0, 0, 0, 0]), dirty[0], dirty[1]);
    const radius = this.#tool === "box" ? 1 : Number(this.size.value);
    if (this.#from && this.#boxTo) this.#mark(...this.#from, ...this.#boxTo, false);
    else if (this.#corner && this.#cursor) this.#mark(...this.#corner, ...this.#cursor, false);
    else if (this.#cursor) this.#mark(...around(this.#cursor, radius), true);
    else if (this.#hover && this.#tool !== "box") this.#mark(...around(this.#hover, radius), true);
    else this.marker.hidden = true;
  }

  /** An outline over the picture, between two corners in pixels. */
  #mark(x0, y0, x1, y1, round) {
    this.marker.hidden = false;
    this.marker.classList.toggle("round", round);
    this.marker.style.left = `${(100 * Math.min(x0, x1)) / this.mask.width}%`;
    this.marker.style.top = `${(100 * Math.min(y0, y1)) / this.mask.height}%`;
    this.marker.style.width = `${(100 * Math.abs(x1 - x0)) / this.mask.width}%`;
    this.marker.style.height = `${(100 * Math.abs(y1 - y0)) / this.mask.height}%`;
  }
}

/** The corners of a box around a point. */
function around([x, y], radius) {
  return [x - radius, y - radius, x + radius, y + radius];
}
