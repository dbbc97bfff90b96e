// A mask of an image's own size that is painted, undone, and sent as a PNG. No DOM: mask_painter.js draws it.

const MAX_UNDONE = 50;

export class Mask {
  #before = null; // the pixels when the stroke began
  #undo = [];
  #redo = [];
  #dirty = null; // [left, top, right, bottom], right and bottom excluded

  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height); // 1: to be filled
  }

  get count() {
    return this.pixels.reduce((sum, value) => sum + value, 0);
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  get canRedo() {
    return this.#redo.length > 0;
  }

  /** One change that undo takes back. `change` writes pixels, or several strokes do between begin() and end(). */
  change(change) {
    this.begin();
    change();
    this.end();
  }

  begin() {
    this.#before = this.pixels.slice();
  }

  end() {
    if (this.#before === null) return;
    const difference = differing(this.#before, this.pixels);
    this.#before = null;
    if (difference === null) return;
    this.#undo.push(difference);
    if (this.#undo.length > MAX_UNDONE) this.#undo.shift();
    this.#redo = [];
  }

  undo() {
    this.#flip(this.#undo, this.#redo);
  }

  redo() {
    this.#flip(this.#redo, this.#undo);
  }

  #flip(from, to) {
    const difference = from.pop();
    if (!difference) return;
    const { start, flipped } = difference;
    for (let index = 0; index < flipped.length; index++) this.pixels[start + index] ^= flipped[index];
    this.#touch(0, Math.floor(start / this.width), this.width, Math.ceil((start + flipped.length) / this.width));
    to.push(difference);
  }

  /** Sets every pixel whose centre is at most `radius` from the segment. Coordinates in pixels; the first pixel's centre is (0.5, 0.5). */
  stroke(x0, y0, x1, y1, radius, value) {
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length = dx * dx + dy * dy;
    const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
    const right = Math.min(this.width - 1, Math.ceil(Math.max(x0, x1) + radius));
    const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
    const bottom = Math.min(this.height - 1, Math.ceil(Math.max(y0, y1) + radius));
    this.#touch(left, top, right + 1, bottom + 1);
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const [px, py] = [x + 0.5 - x0, y + 0.5 - y0];
        const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) this.pixels[y * this.width + x] = value;
      }
    }
  }

  /** Sets the pixels that the box between two points touches. */
  box(x0, y0, x1, y1, value) {
    const [left, right] = [Math.min(x0, x1), Math.max(x0, x1)].map((x) => Math.min(this.width - 1, Math.max(0, Math.floor(x))));
    const [top, bottom] = [Math.min(y0, y1), Math.max(y0, y1)].map((y) => Math.min(this.height - 1, Math.max(0, Math.floor(y))));
    this.#touch(left, top, right + 1, bottom + 1);
    for (let y = top; y <= bottom; y++) this.pixels.fill(value, y * this.width + left, y * this.width + right + 1);
  }

  clear() {
    this.pixels.fill(0);
    this.#touchAll();
  }

  invert() {
    for (let index = 0; index < this.pixels.length; index++) this.pixels[index] ^= 1;
    this.#touchAll();
  }

  /** Of another picture of the same size, as the service reads masks: where alpha is 0 if that occurs, else where a channel is >= 128. */
  load(rgba) {
    let transparent = false;
    for (let index = 3; index < rgba.length; index += 4) transparent ||= rgba[index] === 0;
    for (let pixel = 0; pixel < this.pixels.length; pixel++) {
      const at = 4 * pixel;
      const bright = Math.max(rgba[at], rgba[at + 1], rgba[at + 2]) >= 128;
      this.pixels[pixel] = Number(transparent ? rgba[at + 3] === 0 : bright);
    }
    this.#touchAll();
  }

  /** The box that holds all changes since the last call; null if there are none. */
  takeDirty() {
    const dirty = this.#dirty;
    this.#dirty = null;
    return dirty;
  }

  #touch(left, top, right, bottom) {
    if (right <= left || bottom <= top) return;
    const [l, t, r, b] = this.#dirty ?? [left, top, right, bottom];
    this.#dirty = [Math.min(l, left), Math.min(t, top), Math.max(r, right), Math.max(b, bottom)];
  }

  #touchAll() {
    this.#touch(0, 0, this.width, this.height);
  }

  /** RGBA of the pixels of a box: `on` where they are set, `off` elsewhere. */
  paint([left, top, right, bottom], on, off) {
    const width = right - left;
    const image = new ImageData(width, bottom - top);
    const words = new Uint32Array(image.data.buffer);
    const [set, unset] = [on, off].map((colour) => new Uint32Array(new Uint8ClampedArray(colour).buffer)[0]);
    for (let index = 0; index < words.length; index++) {
      const pixel = (top + Math.floor(index / width)) * this.width + left + (index % width);
      words[index] = this.pixels[pixel] ? set : unset;
    }
    return image;
  }

  /** White where it is to be filled, black elsewhere. */
  async toPng() {
    const canvas = new OffscreenCanvas(this.width, this.height);
    canvas.getContext("2d").putImageData(this.paint([0, 0, this.width, this.height], [255, 255, 255, 255], [0, 0, 0, 255]), 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}

/** Where two masks differ: {start, flipped}; null if nowhere. */
function differing(before, after) {
  let start = 0;
  while (start < after.length && before[start] === after[start]) start++;
  if (start === after.length) return null;
  let end = after.length;
  while (before[end - 1] === after[end - 1]) end--;
  const flipped = after.slice(start, end);
  for (let index = 0; index < flipped.length; index++) flipped[index] ^= before[start + index];
  return { start, flipped };
}
