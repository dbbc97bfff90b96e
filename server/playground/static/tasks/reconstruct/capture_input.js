// What a reconstruction needs of the user: a picture, its map of depth or points, and the camera.

import { bytes, choice, field, h } from "../../dom.js";
import { FileRejected } from "../../file_checks.js";
import { partOf, pictureInput, show } from "../../image_input.js";
import { isMap, readMap, showMap } from "./depth_map.js";

const SAMPLE_FOV = 40; // starters/make/drawings/captures.py draws them so
const SAMPLES = [
  { name: "mug.png", model: "shapes", label: "One image of a mug, without depth" },
  ...["mug", "duck"].map((name) => ({ name: `${name}.png`, model: "reconstruct", companion: `${name}-depth.png`, label: `A ${name}, with depth` })),
];

export class CaptureInput {
  #picture = null;
  #map = null; // {blob, name, part, read}

  #sample = null;

  /** block(reason): why it is not complete, or ""; alone(): whether a picture without depth is enough; onchange(sample or null): it is
   * another one; onsample(): a sample is there. */
  constructor(panel, models, { block, alone, onchange, onsample }) {
    Object.assign(this, { block, alone, onchange });
    this.part = partOf(models, "depth");
    this.preview = h("canvas", { class: "shown", role: "img", "aria-label": "The chosen image", hidden: true });
    this.depth = h("canvas", { class: "shown depth", role: "img", "aria-label": "Its depth, near bright and far dark", hidden: true });
    this.words = h("p", { class: "caption" });
    this.fov = number("60", { min: 1, max: 179, step: "any" });
    this.focal = ["fx", "fy", "cx", "cy"].map((name) => [name, number("", { step: "any", placeholder: name === "fx" ? "" : "default" })]);
    this.scale = number("1000", { min: 1, step: "any" });
    const wide = field("Field of view", this.fov, "horizontal, in degrees");
    const long = h(
      "div",
      { class: "fields pairs", hidden: true },
      this.focal.map(([name, input]) => field(name, input)),
    );
    const camera = choice(
      "Camera",
      [
        ["fov", "Field of view"],
        ["focal", "Focal length in pixels"],
      ],
      "fov",
      (way) => {
        wide.hidden = way !== "fov";
        long.hidden = way === "fov";
        this.#tell();
      },
    );
    for (const [, input] of this.focal) input.addEventListener("input", () => this.#tell());
    this.long = long;
    this.camera = h("div", { class: "fields" }, camera, wide, long);
    this.scaled = field("Depth scale", this.scale, "steps per metre in a 16-bit PNG; 1000 for millimetres");
    const input = pictureInput(panel, {
      part: partOf(models, "image"),
      samples: SAMPLES,
      stage: h("figure", {}, h("div", { class: "pair" }, this.preview, this.depth), this.words),
      block,
      onpicture: (picture, sample) => this.#take(picture, sample),
      onsample,
      invitation: "An image with its depth map, or an object cut out",
      accept: ",.npy",
      others: (file) => this.#takeMap(file),
    });
    this.receive = input.receive;
    this.first = input.first;
    this.filled = input.filled;
    this.element = h(
      "div",
      {},
      input.element,
      h(
        "p",
        { class: "caption" },
        "Depth map: a 16-bit PNG, or a .npy file with metres or with a point for each pixel. Transparent pixels are background. Models that " +
          "estimate depth also accept an image alone, if it has transparency.",
      ),
      h("div", { class: "tools" }, this.camera, this.scaled),
    );
    this.#tell();
  }

  /** What is sent, as [part, blob, name], and the camera's options. */
  get parts() {
    const map = this.#map && [this.#map.part, this.#map.blob, this.#map.name];
    return [["image", this.#picture.blob, this.#picture.name], map].filter(Boolean);
  }

  get options() {
    if (this.#map?.part === "points") return {};
    const plain = !this.#map || this.#map.name.endsWith(".npy") || this.scale.value === "1000";
    const scale = plain ? {} : { depth_scale: Number(this.scale.value) };
    if (this.long.hidden) return { fov: Number(this.fov.value), ...scale };
    return {
      ...Object.fromEntries(this.focal.filter(([, input]) => input.value).map(([name, input]) => [name, Number(input.value)])),
      ...scale,
    };
  }

  /** Restores the input of a job that was started before the page was reloaded. */
  async restore([[, blob, name], [, map] = []], { fov, depth_scale: scale, ...focal }) {
    if (fov) this.fov.value = fov;
    if (scale) this.scale.value = scale;
    if (focal.fx) this.long.closest(".fields").querySelectorAll("[type=radio]")[1].click();
    for (const [option, input] of this.focal) input.value = focal[option] ?? "";
    if (map) await this.#takeMap(map);
    await this.#take({ blob, name, bitmap: await createImageBitmap(blob).catch(() => null) }, null);
    this.filled();
  }

  async #take(picture, sample) {
    this.#forgetSample();
    this.#picture = picture;
    this.preview.hidden = picture.bitmap === null;
    if (picture.bitmap) show(this.preview, picture.bitmap);
    if (sample) {
      if (picture.companion) await this.#takeMap(picture.companion);
      else this.#forgetMap();
      this.#sample = sample;
      this.fovBefore = this.fov.value;
      this.fov.value = String(SAMPLE_FOV);
    }
    this.onchange(sample);
    this.#tell();
  }

  async #takeMap(file) {
    if (!(await isMap(file))) return false;
    if (file.size > this.part.max_bytes)
      throw new FileRejected(`${file.name} has ${bytes(file.size)}; this service accepts at most ${bytes(this.part.max_bytes)}.`);
    this.#forgetSample();
    const read = await readMap(file);
    this.#map = { blob: file, name: file.name, part: read?.part ?? "depth", read };
    this.depth.hidden = read === null;
    this.range = read && showMap(this.depth, read);
    this.camera.hidden = this.#map.part === "points";
    this.scaled.hidden = file.name.endsWith(".npy");
    this.onchange(null);
    this.#tell();
    return true;
  }

  /** What a sample brought with it goes with it: its map and its field of view. */
  #forgetSample() {
    if (!this.#sample) return;
    this.#sample = this.#picture = null;
    this.preview.hidden = true;
    this.#forgetMap();
    this.fov.value = this.fovBefore;
  }

  #forgetMap() {
    this.#map = null;
    this.depth.hidden = true;
    this.camera.hidden = this.scaled.hidden = false;
  }

  /** Says anew what is there and what is missing. */
  tell() {
    this.#tell();
  }

  #tell() {
    const map = this.#map;
    const seen = map?.read && (this.range ? `${(100 * this.range[2]).toFixed(0)} % valid` : "no valid values");
    this.words.textContent = [
      this.#picture && this.#picture.name + (this.#picture.bitmap ? "" : " (this browser cannot show it)"),
      map && (map.read ? `${map.name}, ${map.read.width} × ${map.read.height}, ${seen}` : `${map.name} (this page cannot show it)`),
    ]
      .filter(Boolean)
      .join("; ");
    this.block(this.#missing());
  }

  #missing() {
    if (!this.#picture && !this.#map) return "Choose an image, or run one of the samples.";
    if (!this.#picture) return "Choose the image of this depth map.";
    if (!this.#map && !this.alone()) return "Choose the depth map of this image.";
    if (this.#map?.part !== "points" && !this.long.hidden && !this.focal[0][1].value) return "Enter fx, the focal length.";
    return "";
  }
}

function number(value, properties) {
  return h("input", { type: "number", value, inputMode: "decimal", ...properties });
}
