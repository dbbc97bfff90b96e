// A shape as it arrives, level by level: the stage, and what turns it.

import { choice, h, save } from "../../dom.js";
import { readPly } from "./ply.js";

const TURN = 0.12; // radians a key press
const ZOOM = 1.15;
const KEYS = { ArrowLeft: [-TURN, 0], ArrowRight: [TURN, 0], ArrowUp: [0, -TURN], ArrowDown: [0, TURN] };
const KINDS = [
  ["mesh", "Mesh"],
  ["points", "Points"],
];
const EMPTY = "The shape appears here, level by level.";

export class ShapeView {
  #stage = null; // a promise, since three.js is loaded when there is something to draw
  #last = Promise.resolve(); // what is shown is shown one after the other

  constructor() {
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "img",
      "aria-label": "The shape in 3D. Drag it or use the arrow keys to turn it; plus and minus zoom.",
      onkeydown: (event) => this.#key(event),
    });
    this.words = h("p", { class: "caption" }, EMPTY);
    this.kinds = h("div");
    this.size = h("input", { type: "range", min: 0.1, max: 1, step: 0.1, value: "0.8", oninput: () => this.#resize() });
    this.sizes = h("label", { class: "slide" }, h("span", {}, "Point size"), this.size);
    const button = (text, act) => h("button", { type: "button", onclick: () => this.#do(act) }, text);
    this.spatial = [this.#check("Grid", "grid", true), this.#check("Turn", "turn", false)];
    this.tools = h(
      "div",
      { class: "tools", hidden: true },
      this.kinds,
      this.sizes,
      h(
        "div",
        { class: "buttons" },
        this.spatial,
        button("Reset view", (stage) => stage.reset()),
        button("Save image", async (stage) => save(await stage.picture(), "view.png")),
      ),
    );
    this.frame = h("div", { class: "space", hidden: true }, this.canvas);
    this.flat = h("p", { class: "caption", hidden: true }, "This browser has no WebGL: only the points are drawn. The files are complete.");
    this.element = h("figure", { class: "shape" }, this.frame, this.flat, this.words, this.tools);
  }

  clear() {
    this.words.textContent = EMPTY;
    this.tools.hidden = this.frame.hidden = true;
    this.kinds.replaceChildren();
    return this.#next(() => this.#do((stage) => stage.clear()));
  }

  /** What a level has found. ply: a blob; words(count): what it is. */
  level(ply, words) {
    return this.#next(async () => {
      await this.#points(ply, words);
      this.#show("points");
    });
  }

  /** All of it: a mesh and points, blobs. */
  whole(glb, ply, words) {
    return this.#next(async () => {
      await this.#points(ply, words);
      await this.#do(async (stage) => stage.mesh(await glb.arrayBuffer()));
      if (this.flat.hidden) this.kinds.replaceChildren(choice("Show", KINDS, "mesh", (kind) => this.#show(kind)));
      this.#show(this.flat.hidden ? "mesh" : "points");
    });
  }

  /** words: empty where it failed. */
  stopped(words) {
    if (!this.frame.hidden) this.words.textContent = words || "The last level received";
  }

  async #points(ply, words) {
    const cloud = await readPly(ply);
    this.frame.hidden = this.tools.hidden = false;
    this.#stage ??= this.#load();
    await this.#do((stage) => stage.points(cloud));
    this.words.textContent = words(cloud.count.toLocaleString("en"));
  }

  async #load() {
    if (document.createElement("canvas").getContext("webgl2")) {
      const { Stage3D } = await import("./webgl_stage.js");
      return new Stage3D(this.canvas);
    }
    const { StageFlat } = await import("./canvas_stage.js");
    this.flat.hidden = false;
    for (const control of this.spatial) control.hidden = true;
    this.canvas.setAttribute("aria-label", "The points. Use the arrow keys to turn them; plus and minus zoom.");
    return new StageFlat(this.canvas);
  }

  #next(act) {
    this.#last = this.#last.catch(() => {}).then(act);
    return this.#last;
  }

  async #do(act) {
    if (this.#stage) await act(await this.#stage);
  }

  #show(kind) {
    this.sizes.hidden = kind !== "points";
    this.#resize();
    this.#do((stage) => stage.show(kind));
  }

  #resize() {
    this.#do((stage) => stage.pointSize(Number(this.size.value)));
  }

  #check(text, act, checked) {
    const box = h("input", { type: "checkbox", checked, onchange: () => this.#do((stage) => stage[act](box.checked)) });
    return h("label", { class: "check" }, box, h("span", {}, text));
  }

  #key(event) {
    const by = KEYS[event.key];
    const zoom = { "+": ZOOM, "=": ZOOM, "-": 1 / ZOOM }[event.key];
    if (!by && !zoom) return;
    event.preventDefault();
    this.#do((stage) => (by ? stage.rotate(...by) : stage.zoom(zoom)));
  }
}
