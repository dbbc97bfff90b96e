// Points as a picture, for browsers without WebGL: squares of colour, the near ones over the far ones. Meshes are not drawn.

const FILL = 0.8; // share of the canvas

export class StageFlat {
  #cloud = null;
  #angles = [0.35, 0.3]; // around the upright axis, and from above
  #size = 1;
  #zoom = 1;

  constructor(canvas) {
    this.canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  points(cloud) {
    this.#cloud = cloud;
    this.draw();
  }

  async mesh() {}
  show() {}
  grid() {}
  turn() {}

  clear() {
    this.#cloud = null;
    this.reset();
  }

  pointSize(size) {
    this.#size = size;
    this.draw();
  }

  reset() {
    this.#angles = [0.35, 0.3];
    this.#zoom = 1;
    this.draw();
  }

  rotate(across, down) {
    this.#angles = [this.#angles[0] - across, Math.max(-1.5, Math.min(1.5, this.#angles[1] + down))];
    this.draw();
  }

  zoom(factor) {
    this.#zoom *= factor;
    this.draw();
  }

  picture() {
    return new Promise((resolve) => this.canvas.toBlob(resolve));
  }

  draw() {
    const { canvas } = this;
    canvas.width = canvas.clientWidth;
    canvas.height = canvas.clientHeight;
    if (!this.#cloud?.count) return;
    const context = canvas.getContext("2d");
    const { positions, colours, seen, pitch, fine, count } = this.#cloud;
    const [low, high] = bounds(positions);
    const middle = low.map((value, axis) => (value + high[axis]) / 2);
    const radius = Math.hypot(...high.map((value, axis) => value - middle[axis])) || 1;
    const scale = (this.#zoom * FILL * Math.min(canvas.width, canvas.height)) / 2 / radius;
    const [[sinY, cosY], [sinX, cosX]] = this.#angles.map((angle) => [Math.sin(angle), Math.cos(angle)]);
    const placed = Array.from({ length: count }, (_, point) => {
      const [x, y, z] = middle.map((value, axis) => positions[3 * point + axis] - value);
      const [right, forward] = [x * cosY + z * sinY, z * cosY - x * sinY];
      return [right, y * cosX + forward * sinX, forward * cosX - y * sinX, point];
    }).sort((a, b) => b[2] - a[2]);
    for (const [x, y, , point] of placed) {
      const side = Math.max(1, this.#size * (point < seen ? fine : pitch) * scale);
      context.fillStyle = `rgb(${colours.subarray(3 * point, 3 * point + 3).join(" ")})`;
      context.fillRect(canvas.width / 2 + x * scale - side / 2, canvas.height / 2 + y * scale - side / 2, side, side);
    }
  }
}

function bounds(positions) {
  const [low, high] = [Array(3).fill(Infinity), Array(3).fill(-Infinity)];
  positions.forEach((value, index) => {
    low[index % 3] = Math.min(low[index % 3], value);
    high[index % 3] = Math.max(high[index % 3], value);
  });
  return [low, high];
}
