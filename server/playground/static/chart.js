// Small line charts over time as SVG, with the values of a moment where the pointer or the keyboard points.

import { h } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [320, 90];
const TICKS = 3; // parts of the time axis
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -12, PageDown: 12, Home: -Infinity, End: Infinity };

/** A chart that is drawn once and given new lines. series: names, told apart by class s0, s1; format(number) makes its labels. */
export class Chart {
  #lines = [];
  #times = { end: 0, step: 1 };
  #at = null; // index of the moment that is pointed at
  #logarithmic = false;

  constructor(title, series, format) {
    Object.assign(this, { title, series, format });
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.paths = series.map((_, index) => svg("path", { class: `s${index}` }));
    this.cross = svg("path", { class: "cross" });
    this.svg.append(svg("path", { class: "ground", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), ...this.paths, this.cross);
    this.top = h("span", { class: "top" });
    this.bottom = h("span", { class: "bottom" });
    this.now = h("span", { class: "now" });
    this.words = h("span", { class: "words" });
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.pointed = h("p", { class: "unseen", role: "status" });
    const legend = series.length > 1 ? series.map((name, index) => h("span", { class: `key s${index}` }, name)) : [];
    const plot = h(
      "div",
      {
        class: "plot",
        tabindex: "0",
        role: "group",
        "aria-label": `${title}. Use the arrow keys to move through time.`,
        onpointermove: (event) => this.#follow(event),
        onpointerleave: () => this.#point(null),
        onblur: () => this.#point(null),
        onkeydown: (event) => this.#key(event),
      },
      this.svg,
      this.top,
      this.bottom,
    );
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("strong", {}, title), ...legend, this.words, this.now),
      plot,
      this.axis,
      this.pointed,
    );
  }

  /** lines: an array of numbers or null for each series, the oldest first; times: {end, step}, Unix milliseconds; words: what they come to. */
  draw(lines, times, words = "") {
    const shown = JSON.stringify([lines, times, words]);
    if (shown === this.shown) return;
    this.shown = shown;
    this.#lines = lines;
    this.#times = times;
    this.words.textContent = words;
    this.#redraw();
  }

  /** Whether the axis of values is logarithmic. */
  scale(logarithmic) {
    this.#logarithmic = logarithmic;
    if (this.#lines.length) this.#redraw();
  }

  #redraw() {
    const values = this.#lines.flat().filter((value) => value !== null);
    const highest = nice(Math.max(0, ...values));
    const least = this.#logarithmic ? lowest(values.filter((value) => value > 0), highest) : 0;
    const share = (value) =>
      this.#logarithmic ? Math.max(0, Math.log(value / least) / Math.log(highest / least)) : value / highest;
    this.#lines.forEach((line, index) => this.paths[index].setAttribute("d", pathOf(line, share)));
    this.top.textContent = this.format(highest);
    this.bottom.textContent = this.#logarithmic ? this.format(least) : "";
    const latest = this.#told(this.#lines[0].length - 1);
    const scale = this.#logarithmic ? `, logarithmic from ${this.format(least)}` : "";
    this.svg.setAttribute("aria-label", `${this.title}: now ${latest}; axis up to ${this.format(highest)}${scale}`);
    const count = this.#lines[0].length;
    const ticks = Array.from({ length: TICKS + 1 }, (_, tick) => Math.round((tick * (count - 1)) / TICKS));
    this.axis.replaceChildren(...ticks.map((index) => h("span", {}, this.#timeOf(index, false))));
    this.#mark();
  }

  #timeOf(index, precise = true) {
    const time = new Date(this.#times.end - (this.#lines[0].length - 1 - index) * this.#times.step);
    return time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(precise ? { second: "2-digit" } : {}) });
  }

  #told(index) {
    const value = (line) => (line[index] === null ? "none" : this.format(line[index]));
    return this.series.map((name, at) => `${name} ${value(this.#lines[at])}`).join(", ");
  }

  #follow(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    this.#point(Math.min(this.#lines[0].length - 1, Math.max(0, Math.round(share * (this.#lines[0].length - 1)))));
  }

  #key(event) {
    const by = KEYS[event.key];
    if (by === undefined || !this.#lines.length) return;
    event.preventDefault();
    const last = this.#lines[0].length - 1;
    this.#point(Math.min(last, Math.max(0, (this.#at ?? last + (by < 0 ? 1 : 0)) + by)));
    this.pointed.textContent = this.now.textContent;
  }

  #point(index) {
    this.#at = index;
    this.#mark();
  }

  /** The line of the moment that is pointed at, and its values in place of the latest. */
  #mark() {
    if (!this.#lines.length) return;
    const last = this.#lines[0].length - 1;
    const x = ((this.#at ?? 0) * WIDTH) / Math.max(1, last);
    this.cross.setAttribute("d", this.#at === null ? "" : `M${x.toFixed(1)} 0V${HEIGHT}`);
    const latest = this.#lines.map((line) => (line[last] === null ? "–" : this.format(line[last]))).join(" / ");
    this.now.textContent = this.#at === null ? latest : `${this.#timeOf(this.#at)}: ${this.#told(this.#at)}`;
  }
}

/** The next of 1, 2, 5 times a power of ten; 1 for zero. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Where a logarithmic axis begins: a power of ten below all values, at least a decade below the highest. */
function lowest(values, highest) {
  const power = 10 ** Math.floor(Math.log10(Math.min(highest, ...values)));
  return Math.min(power, highest / 10);
}

/** Gaps where there is nothing; a value between two gaps is a short dash. share(value): its height, 0 to 1. */
function pathOf(line, share) {
  const step = WIDTH / Math.max(1, line.length - 1);
  let path = "";
  let drawing = false;
  line.forEach((value, index) => {
    if (value === null) {
      drawing = false;
      return;
    }
    const [x, y] = [(index * step).toFixed(1), (HEIGHT - 1 - share(value) * (HEIGHT - 4)).toFixed(1)];
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
