// A clip that plays with people drawn over it, each frame with what was seen at its time.

import { h } from "../../dom.js";
import { colourOf, labelsAt, placeAt } from "./people.js";
import { SeekQueue } from "../seek_queue.js";

const LEAST_KEYPOINT = 0.2; // keypoints of a lower score are not drawn
const FRAME_S = 1 / 30; // where nobody tells the rate
const ROUNDING = 1e-3; // of a frame
// COCO's keypoints, joined by lines
const BONES = [
  [3, 1],
  [1, 0],
  [0, 2],
  [2, 4], // head
  [5, 6],
  [5, 7],
  [7, 9],
  [6, 8],
  [8, 10], // shoulders and arms
  [5, 11],
  [6, 12],
  [11, 12],
  [11, 13],
  [13, 15],
  [12, 14],
  [14, 16], // trunk and legs
];

export class Clip {
  #time = 0;
  #url = "";
  #plays = false;
  #seeks;

  /** ontime(seconds): another frame is shown. people(): those to draw; least(): the least score of labels. */
  constructor({ ontime, people, least }) {
    Object.assign(this, { ontime, people, least });
    this.file = null;
    this.size = [16, 9];
    this.frame_s = FRAME_S;
    this.duration = 0;
    this.video = h("video", { controls: true, muted: true, loop: true, playsInline: true, "aria-label": "The clip" });
    this.#seeks = new SeekQueue(this.video);
    this.overlay = h("canvas", { class: "overlay", "aria-hidden": "true" });
    this.boxes = h("input", { type: "checkbox", checked: true, onchange: () => this.draw() });
    this.skeletons = h("input", { type: "checkbox", checked: true, onchange: () => this.draw() });
    this.stage = h("div", { class: "clip", hidden: true }, this.video, this.overlay);
    this.words = h("p", { class: "caption" }, "The clip appears here, with the people in it.");
    this.tools = h(
      "div",
      { class: "buttons", hidden: true },
      h("label", { class: "check" }, this.boxes, h("span", {}, "Boxes")),
      h("label", { class: "check" }, this.skeletons, h("span", {}, "Skeletons")),
      h("button", { type: "button", title: "Key ,", onclick: () => this.step(-1) }, "Previous frame"),
      h("button", { type: "button", title: "Key .", onclick: () => this.step(1) }, "Next frame"),
    );
    this.element = h("figure", { onkeydown: (event) => this.#key(event) }, this.stage, this.words, this.tools);
    for (const event of ["seeked", "loadeddata"]) this.video.addEventListener(event, () => this.#shown(this.#frameOf(this.video.currentTime) * this.frame_s));
    this.#follow();
  }

  get time() {
    return this.#time;
  }

  /** Resolves with whether this browser can play it. */
  async load(file) {
    this.file = file;
    URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(file);
    this.#time = 0;
    this.frame_s = FRAME_S;
    this.#plays = await new Promise((resolve) => {
      this.video.onloadedmetadata = () => resolve(this.video.videoWidth > 0);
      this.video.onerror = () => resolve(false);
      this.video.src = this.#url;
    });
    this.video.hidden = !this.#plays;
    if (this.#plays) this.describe({ width: this.video.videoWidth, height: this.video.videoHeight, duration_s: this.video.duration });
    this.stage.hidden = this.tools.hidden = !this.#plays;
    this.words.textContent = this.#plays
      ? `${file.name}, ${this.size.join(" × ")}, ${this.duration.toFixed(1)} s`
      : `This browser cannot play ${file.name}. The service may be able to read it; people are then shown on an empty background.`;
    this.draw();
    return this.#plays;
  }

  /** Facts of it, as the service tells them or the browser knows them. */
  describe({ width, height, duration_s: duration, fps = 0 }) {
    this.size = [width, height];
    this.duration = duration;
    if (fps) this.frame_s = 1 / fps;
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.hidden = this.tools.hidden = false;
  }

  seek(time) {
    const clamped = Math.max(0, Math.min(this.duration, time));
    if (this.#plays) this.#seeks.to(clamped);
    else this.#shown(clamped);
  }

  /** To where something new is known, unless it plays. */
  follow(time) {
    if (this.video.paused && Number.isFinite(time)) this.seek(time);
  }

  /** By frames, each at its middle: the ends of frames belong to one or the other by rounding. */
  step(count) {
    this.video.pause();
    const from = this.#plays ? this.#seeks.time : this.#time;
    this.seek((this.#frameOf(from) + count + 0.5) * this.frame_s);
  }

  draw() {
    const { overlay } = this;
    [overlay.width, overlay.height] = this.size;
    // not on the GPU, where Chromium may keep what was drawn if nothing is drawn after a clear
    const context = overlay.getContext("2d", { willReadFrequently: true });
    const thick = Math.max(1.5, this.size[0] / 300);
    for (const person of this.people()) {
      const place = placeAt(person, this.#time);
      if (!place) continue;
      context.strokeStyle = context.fillStyle = colourOf(person.person);
      context.lineWidth = thick;
      context.setLineDash(place.interpolated ? [4 * thick, 4 * thick] : []);
      if (this.boxes.checked) {
        context.strokeRect(...place.box);
        tag(context, person, place.box, labelsAt(person, this.#time, this.least())[0], 7 * thick);
      }
      if (this.skeletons.checked && place.pose) skeleton(context, place.pose, 1.5 * thick);
    }
  }

  /** Number of the frame that is shown at a time, of a clip with a constant rate; of others #follow tells better. */
  #frameOf(time) {
    return Math.floor(time / this.frame_s + ROUNDING);
  }

  #shown(time) {
    this.#time = time;
    this.draw();
    this.ontime(time);
  }

  #follow() {
    this.video.requestVideoFrameCallback?.((_, { mediaTime }) => {
      this.#shown(mediaTime);
      this.#follow();
    });
  }

  #key(event) {
    const by = { ",": -1, ".": 1 }[event.key];
    if (by) this.step(by);
  }
}

function tag(context, { person }, [x, y], best, height) {
  const text = best ? `${person} ${best.label}` : String(person);
  context.font = `600 ${height}px system-ui, sans-serif`;
  const top = Math.max(0, y - 1.3 * height);
  context.fillRect(x, top, context.measureText(text).width + 0.6 * height, 1.3 * height);
  const ground = context.fillStyle;
  context.fillStyle = "#fff";
  context.fillText(text, x + 0.3 * height, top + height);
  context.fillStyle = ground;
}

function skeleton(context, pose, radius) {
  const seen = (index) => pose[index][2] >= LEAST_KEYPOINT;
  context.beginPath();
  for (const [from, to] of BONES) {
    if (!seen(from) || !seen(to)) continue;
    context.moveTo(pose[from][0], pose[from][1]);
    context.lineTo(pose[to][0], pose[to][1]);
  }
  context.stroke();
  for (const [x, y, score] of pose) {
    if (score < LEAST_KEYPOINT) continue;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }
}
