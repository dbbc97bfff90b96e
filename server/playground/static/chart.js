// Small line charts as SVG.

import { h } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [320, 90];

/** A chart that is drawn once and given new lines. series: names, told apart by class s0, s1; format(number) makes its labels. */
export class Chart {
  constructor(title, series, format) {
    this.format = format;
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.paths = series.map((_, index) => svg("path", { class: `s${index}` }));
    this.svg.append(svg("path", { class: "ground", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), ...this.paths);
    this.top = h("span", { class: "top" });
    this.now = h("span", { class: "now" });
    this.words = h("span", { class: "words" });
    const legend = series.length > 1 ? series.map((name, index) => h("span", { class: `key s${index}` }, name)) : [];
    this.title = title;
    this.series = series;
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("strong", {}, title), ...legend, this.words, this.now),
      h("div", { class: "plot" }, this.svg, this.top),
    );
  }

  /** lines: an array of numbers or null for each series, the oldest first; words: what they come to. */
  draw(lines, words = "") {
    const shown = JSON.stringify([lines, words]);
    if (shown === this.shown) return;
    this.shown = shown;
    this.words.textContent = words;
    const highest = nice(Math.max(0, ...lines.flat().filter((value) => value !== null)));
    lines.forEach((line, index) => this.paths[index].setAttribute("d", pathOf(line, highest)));
    const latest = lines.map((line) => line.at(-1));
    this.top.textContent = this.format(highest);
    this.now.textContent = latest.map((value) => (value === null ? "–" : this.format(value))).join(" / ");
    const spoken = this.series.map((name, index) => `${name} ${latest[index] === null ? "none" : this.format(latest[index])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: now ${spoken}; the axis ends at ${this.format(highest)}`);
  }
}

/** The next of 1, 2, 5 times a power of ten; 1 for zero. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Gaps where there is nothing; a value between two gaps is a short dash. */
function pathOf(line, highest) {
  const step = WIDTH / Math.max(1, line.length - 1);
  let path = "";
  let drawing = false;
  line.forEach((value, index) => {
    if (value === null) {
      drawing = false;
      return;
    }
    const [x, y] = [(index * step).toFixed(1), (HEIGHT - 1 - (value / highest) * (HEIGHT - 4)).toFixed(1)];
    path += drawing ? `L${x} ${y}` : `M${x} ${y}h1`;
    drawing = true;
  });
  return path;
}

function svg(tag, attributes) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
