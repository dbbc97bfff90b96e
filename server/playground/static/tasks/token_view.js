// Which patches of what a network was given were one token after each of its blocks.

import { choice, h, percent } from "../dom.js";

/**
 * title; seen: a canvas of what the network was given; grid: [rows, columns] of the patches that lie over it, and tile: [rows, columns] after
 * which another frame begins; layers: for every block the token of each patch, row by row, null where there is none; special: tokens that
 * never merge; unit: what the words call it; state: {layer, mode}, kept by the caller from one view to the next.
 */
export function tokenView({ title, seen, grid, tile = grid, layers, special, unit, state = {} }) {
  const [rows, columns] = grid;
  const patches = layers[0].filter((id) => id !== null).length;
  const means = meanColours(seen, rows, columns);
  state.layer = Math.min(state.layer ?? layers.length, layers.length);
  state.mode ??= "colour";
  let pointed = -1;

  const canvas = h("canvas", {
    width: seen.width,
    height: seen.height,
    class: seen.width > seen.height ? "shown wide" : "shown",
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
    value: String(state.layer),
    step: 1,
    oninput: () => ((state.layer = Number(slider.value)), draw()),
  });
  const modes = choice(
    "Show",
    [
      ["colour", "mean colours"],
      ["borders", "borders"],
      ["blend", "blended"],
    ],
    state.mode,
    (value) => ((state.mode = value), draw()),
  );
  draw();
  return h(
    "figure",
    { class: "merged" },
    h("h3", {}, title),
    canvas,
    words,
    h("label", { class: "slide" }, h("span", {}, "After block"), slider),
    modes,
    group,
  );

  /** The token of each patch. */
  function groups() {
    return state.layer === 0 ? layers[0].map((id, patch) => id === null ? null : patch) : layers[state.layer - 1];
  }

  function draw() {
    const ids = groups();
    const context = canvas.getContext("2d");
    const [width, height] = [canvas.width / columns, canvas.height / rows];
    context.globalAlpha = 1;
    context.drawImage(seen, 0, 0);
    if (state.mode !== "borders") {
      context.globalAlpha = state.mode === "blend" ? 0.6 : 1;
      const colours = groupColours(ids, means);
      ids.forEach((id, patch) => {
        if (id === null) return;
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
    if (pointed >= 0 && ids[pointed] !== null) {
      context.fillStyle = "#ffb30099";
      ids.forEach(
        (id, patch) =>
          id === ids[pointed] && context.fillRect((patch % columns) * width, Math.floor(patch / columns) * height, width, height),
      );
    }
    border(context, ids, width, height);
    const left = new Set(ids.filter((id) => id !== null)).size + special;
    words.textContent = state.layer
      ? `${left} of ${patches + special} tokens left after block ${state.layer}`
      : `${left} tokens enter the network`;
    slider.setAttribute("aria-valuetext", words.textContent);
    canvas.setAttribute("aria-label", `The ${unit} as merged tokens: ${words.textContent}. Use the arrow keys to select patches.`);
  }

  function border(context, ids, width, height) {
    context.beginPath();
    ids.forEach((id, patch) => {
      const [x, y] = [patch % columns, Math.floor(patch / columns)];
      if (x + 1 < columns && ((x + 1) % tile[1] === 0 || ids[patch + 1] !== id))
        line(context, (x + 1) * width, y * height, (x + 1) * width, (y + 1) * height);
      if (y + 1 < rows && ((y + 1) % tile[0] === 0 || ids[patch + columns] !== id))
        line(context, x * width, (y + 1) * height, (x + 1) * width, (y + 1) * height);
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
    const size = patch < 0 || ids[patch] === null ? 0 : ids.filter((id) => id === ids[patch]).length;
    group.textContent = size
      ? `A token of ${size} ${size === 1 ? "patch" : "patches"}, ${percent(size / patches)} of the input`
      : "";
    draw();
  }
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
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
