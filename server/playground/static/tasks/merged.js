// Which patches of a picture were one token after each block of the network.

import { choice, h, percent } from "../dom.js";

const SIDE = 448; // pixels of the view, whatever the network sees

/** merging: of an answer with a trace; preprocess: of the bundle, to show the part of the picture that the network saw. */
export function mergedView(bitmap, merging, preprocess) {
  const { grid, layers } = merging.trace;
  const [rows, columns] = grid;
  const special = merging.tokens_in - rows * columns; // class and register tokens are never merged
  const seen = crop(bitmap, preprocess);
  const means = meanColours(seen, rows, columns);
  let layer = layers.length;
  let mode = "colour";
  let pointed = -1;

  const canvas = h("canvas", {
    width: SIDE,
    height: SIDE,
    class: "shown",
    tabindex: "0",
    role: "img",
    onpointermove: point,
    onpointerleave: () => mark(-1),
    onkeydown: move,
    onblur: () => mark(-1),
  });
  const words = h("p", { class: "caption" });
  const group = h("p", { class: "caption", role: "status" });
  const slider = h("input", {
    type: "range",
    min: 0,
    max: layers.length,
    value: String(layer),
    step: 1,
    oninput: () => ((layer = Number(slider.value)), draw()),
  });
  const modes = choice(
    "Show",
    [
      ["colour", "mean colours"],
      ["borders", "borders"],
      ["blend", "blended"],
    ],
    mode,
    (value) => ((mode = value), draw()),
  );
  draw();
  return h(
    "figure",
    { class: "merged" },
    h("h3", {}, "Merged tokens"),
    canvas,
    words,
    h("label", { class: "slide" }, h("span", {}, "After block"), slider),
    modes,
    group,
  );

  function groups() {
    return layer === 0 ? means.map((_, patch) => patch) : layers[layer - 1];
  }

  function draw() {
    const ids = groups();
    const context = canvas.getContext("2d");
    const [width, height] = [SIDE / columns, SIDE / rows];
    context.globalAlpha = 1;
    context.drawImage(seen, 0, 0, SIDE, SIDE);
    if (mode !== "borders") {
      context.globalAlpha = mode === "blend" ? 0.6 : 1;
      const colours = groupColours(ids, means);
      ids.forEach((id, patch) => {
        context.fillStyle = colours.get(id);
        context.fillRect(
          Math.floor((patch % columns) * width),
          Math.floor(Math.floor(patch / columns) * height),
          Math.ceil(width),
          Math.ceil(height),
        );
      });
      context.globalAlpha = 1;
    }
    if (pointed >= 0) {
      context.fillStyle = "#ffb30099";
      ids.forEach(
        (id, patch) =>
          id === ids[pointed] && context.fillRect((patch % columns) * width, Math.floor(patch / columns) * height, width, height),
      );
    }
    border(context, ids, width, height);
    const left = new Set(ids).size + special;
    words.textContent = layer
      ? `${left} of ${merging.tokens_in} tokens left after block ${layer}`
      : `${merging.tokens_in} tokens enter the network`;
    slider.setAttribute("aria-valuetext", words.textContent);
    canvas.setAttribute("aria-label", `The picture by merged tokens: ${words.textContent}. Arrow keys point at patches.`);
  }

  function border(context, ids, width, height) {
    context.beginPath();
    ids.forEach((id, patch) => {
      const [x, y] = [patch % columns, Math.floor(patch / columns)];
      if (x + 1 < columns && ids[patch + 1] !== id) line(context, (x + 1) * width, y * height, (x + 1) * width, (y + 1) * height);
      if (y + 1 < rows && ids[patch + columns] !== id) line(context, x * width, (y + 1) * height, (x + 1) * width, (y + 1) * height);
    });
    for (const [style, thick] of [
      ["#0009", 3],
      ["#fffc", 1],
    ]) {
      context.strokeStyle = style;
      context.lineWidth = thick;
      context.stroke();
    }
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const y = Math.floor(((event.clientY - box.top) / box.height) * rows);
    mark(x < 0 || y < 0 || x >= columns || y >= rows ? -1 : y * columns + x);
  }

  function move(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!by) return;
    event.preventDefault();
    mark(Math.min(rows * columns - 1, Math.max(0, pointed + by)));
  }

  function mark(patch) {
    if (patch === pointed) return;
    pointed = patch;
    const ids = groups();
    const size = patch < 0 ? 0 : ids.filter((id) => id === ids[patch]).length;
    group.textContent = size
      ? `A token of ${size} ${size === 1 ? "patch" : "patches"}, ${percent(size / ids.length)} of what the network sees`
      : "";
    draw();
  }
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
}

/** What the network sees of the picture, as a square canvas. */
function crop(bitmap, { fit, image_size: size, short_side: short }) {
  const canvas = h("canvas", { width: SIDE, height: SIDE });
  const side = (Math.min(bitmap.width, bitmap.height) * size) / short;
  const [width, height] = fit === "squeeze" ? [bitmap.width, bitmap.height] : [side, side];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // the service lays transparent pictures on white, too
  context.fillRect(0, 0, SIDE, SIDE);
  context.drawImage(bitmap, (bitmap.width - width) / 2, (bitmap.height - height) / 2, width, height, 0, 0, SIDE, SIDE);
  return canvas;
}

/** [r, g, b] of each patch, row by row. */
function meanColours(seen, rows, columns) {
  const small = h("canvas", { width: columns, height: rows });
  const context = small.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(seen, 0, 0, columns, rows);
  const { data } = context.getImageData(0, 0, columns, rows);
  return Array.from({ length: rows * columns }, (_, patch) => [...data.subarray(4 * patch, 4 * patch + 3)]);
}

function groupColours(ids, means) {
  const sums = new Map();
  ids.forEach((id, patch) => {
    const sum = sums.get(id) ?? [0, 0, 0, 0];
    means[patch].forEach((value, channel) => (sum[channel] += value));
    sum[3] += 1;
    sums.set(id, sum);
  });
  return new Map(
    [...sums].map(([id, [r, g, b, count]]) => [id, `rgb(${Math.round(r / count)} ${Math.round(g / count)} ${Math.round(b / count)})`]),
  );
}
