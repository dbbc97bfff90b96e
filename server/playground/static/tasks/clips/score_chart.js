// Scores over time: a line for each label, through the views of a clip or the windows of a sound, and a table that says the same.

import { h, percent, shareAlong } from "../../dom.js";

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [1000, 160];
const MOST = 5; // labels with a line

export class Scores {
  #timeline = [];
  #labels = [];
  #duration = 1;
  #at = null; // index of the view that is pointed at

  /** onseek(seconds). */
  constructor(onseek) {
    this.onseek = onseek;
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Scores over time" });
    this.here = h("i", { class: "here", "aria-hidden": "true" });
    this.rest = h("i", { class: "hatched", title: "not processed yet", hidden: true });
    this.plot = h(
      "div",
      {
        class: "axis-of-time plot-of-scores",
        tabindex: "0",
        role: "group",
        "aria-label": "Scores over time. Use the arrow keys to move from one to the next.",
        onclick: (event) => onseek(shareAlong(this.plot, event) * this.#duration),
        onkeydown: (event) => this.#key(event),
      },
      this.svg,
      this.rest,
      this.here,
    );
    this.ends = h("p", { class: "caption ends" });
    this.legend = h("ul", { class: "legend" });
    this.now = h("p", { class: "caption" });
    this.pointed = h("p", { class: "unseen", role: "status" });
    this.table = h("table");
    this.element = h(
      "figure",
      { hidden: true },
      h("h3", {}, "Scores over time"),
      this.plot,
      this.ends,
      this.legend,
      this.now,
      this.pointed,
      h("details", {}, h("summary", {}, "The scores as a table"), h("div", { class: "tabled", tabindex: "0", role: "region", "aria-label": "The scores as a table" }, this.table)),
    );
  }

  clear() {
    this.show([], [], 1, "View", false);
  }

  /** predictions: of all, best first; timeline: as the API has it, so far; unit: "View" or "Window"; running: whether more will come. */
  show(predictions, timeline, duration, unit, running) {
    Object.assign(this, { unit });
    this.#timeline = timeline;
    this.#labels = predictions.slice(0, MOST);
    this.#duration = duration;
    this.#at = null;
    this.element.hidden = timeline.length === 0;
    if (!timeline.length) return;
    const highest = Math.min(1, 1.1 * Math.max(...timeline.flatMap((view) => this.#labels.map((one) => scoreOf(view, one) ?? 0)), 0.01));
    this.svg.replaceChildren(...this.#labels.flatMap((one, index) => this.#line(one, index, highest)));
    const judged = Math.max(...timeline.map(({ end_s: end }) => end));
    this.rest.hidden = !running || judged >= this.#duration;
    this.rest.style.left = `${(100 * judged) / this.#duration}%`;
    this.rest.style.width = `${100 - (100 * judged) / this.#duration}%`;
    this.ends.textContent = `0 to ${this.#duration.toFixed(1)} s; up to ${percent(highest)}`;
    this.legend.replaceChildren(
      ...this.#labels.map(({ label }, index) => h("li", {}, h("i", { class: `line${index}`, "aria-hidden": "true" }), label)),
    );
    this.#tabulate();
  }

  /** No more are judged. */
  ended() {
    this.rest.hidden = true;
  }

  /** The clip is here. */
  at(time) {
    this.here.style.left = `${(100 * time) / this.#duration}%`;
    if (!this.#timeline.length) return;
    const index = this.#timeline.findLastIndex(({ start_s: start, end_s: end }) => start <= time && time <= end);
    this.now.textContent = index < 0 ? `${time.toFixed(1)} s: not processed` : this.#told(index);
  }

  #told(index) {
    const { start_s: start, end_s: end, predictions } = this.#timeline[index];
    const scores = predictions.slice(0, MOST).map(({ label, score }) => `${label} ${percent(score)}`);
    return `${this.unit} ${index + 1}, ${start.toFixed(1)} to ${end.toFixed(1)} s: ${scores.join(", ")}`;
  }

  /** A stroke as long as each view, and a thin line through their middles. */
  #line(label, index, highest) {
    const known = this.#timeline.map((view) => [view, scoreOf(view, label)]).filter(([, score]) => score !== null);
    const x = (seconds) => ((WIDTH * seconds) / this.#duration).toFixed(1);
    const y = (score) => (HEIGHT - 3 - (HEIGHT - 6) * (score / highest)).toFixed(1);
    const spans = known.map(([{ start_s: start, end_s: end }, score]) => `M${x(start)} ${y(score)}H${x(Math.max(end, start + this.#duration / 200))}`);
    const through = known.map(([{ start_s: start, end_s: end }, score]) => `${x((start + end) / 2)} ${y(score)}`);
    return [
      svg("path", { class: `score line${index}`, d: spans.join("") }),
      svg("polyline", { class: `through line${index}`, points: through.join(" ") }),
    ];
  }

  #tabulate() {
    const head = h("tr", {}, h("th", { scope: "col" }, "Seconds"), this.#labels.map(({ label }) => h("th", { scope: "col" }, label)), h("th", { scope: "col" }, "Best"));
    const rows = this.#timeline.map((view) => {
      const cells = this.#labels.map((label) => h("td", {}, scoreOf(view, label) === null ? "–" : percent(scoreOf(view, label))));
      return h("tr", {}, h("th", { scope: "row" }, `${view.start_s.toFixed(1)} to ${view.end_s.toFixed(1)}`), cells, h("td", {}, view.predictions[0].label));
    });
    this.table.replaceChildren(h("thead", {}, head), h("tbody", {}, rows));
  }

  #key(event) {
    const last = this.#timeline.length - 1;
    const from = this.#at ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#at = Math.max(0, Math.min(last, to));
    this.onseek(this.#timeline[this.#at].start_s);
    this.pointed.textContent = this.now.textContent = this.#told(this.#at);
  }
}

/** null: it is not told, since it is not among the best of this view. */
function scoreOf(view, { index }) {
  return view.predictions.find((one) => one.index === index)?.score ?? null;
}

function svg(tag, attributes) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
