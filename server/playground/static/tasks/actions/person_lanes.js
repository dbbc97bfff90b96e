// A lane for each person below the clip: what they do when, and a line where the clip is.

import { h, percent } from "../../dom.js";
import { colourOf, isJudged, labelsAt, placeAt, segments, unjudged } from "./people.js";

const FAINTEST = 0.25; // opacity of a score of 0

export class PersonLanes {
  #only = null; // the person that is shown alone
  #people = [];
  #duration = 1;
  #running = false;

  /** onseek(seconds); onchange(): other people or scores are to be shown. */
  constructor({ onseek, onchange }) {
    Object.assign(this, { onseek, onchange });
    this.slider = h("input", { type: "range", min: 0, max: 1, step: 0.01, value: "0.1", oninput: () => this.#change() });
    this.value = h("output", {}, "0.10");
    this.rows = h("div", { class: "lanes" });
    this.now = h("ul", { class: "now", "aria-label": "At this moment" });
    this.element = h(
      "div",
      { hidden: true },
      h("label", { class: "slide" }, h("span", {}, "Minimum score"), this.slider, this.value),
      this.rows,
      h("h3", {}, "Now"),
      this.now,
    );
  }

  /** From now on seconds are judged one after the other. */
  begin() {
    this.#running = true;
  }

  /** No more seconds are judged. */
  ended() {
    this.#running = false;
    this.#change();
  }

  get least() {
    return Number(this.slider.value);
  }

  /** Those of them that are to be drawn. */
  shown(people) {
    return people.filter(({ person }) => this.#only === null || person === this.#only);
  }

  clear() {
    this.#only = null;
    this.show([], 1);
  }

  show(people, duration) {
    [this.#people, this.#duration] = [people, duration];
    this.element.hidden = people.length === 0;
    this.rows.replaceChildren(...people.map((person) => this.#lane(person)));
    this.at(0);
  }

  /** The clip is here. */
  at(time) {
    for (const line of this.rows.querySelectorAll(".here")) line.style.left = `${(100 * time) / this.#duration}%`;
    this.now.replaceChildren(
      ...this.shown(this.#people).map((person) => {
        const labels = labelsAt(person, time, this.least).map(({ label, score }) => `${label} ${percent(score)}`);
        const nothing = this.#silence(person, time);
        return h("li", {}, dot(person.person), h("span", {}, `Person ${person.person}: ${labels.join(", ") || nothing}`));
      }),
    );
  }

  /** Why no label is told of somebody. */
  #silence(person, time) {
    if (isJudged(person, time)) return placeAt(person, time) ? "nothing above the minimum score" : "not detected";
    return this.#running ? "not processed yet" : placeAt(person, time) ? "not processed" : "not detected";
  }

  #lane(person) {
    const { person: number } = person;
    const who = h(
      "button",
      {
        type: "button",
        class: "who",
        "aria-pressed": String(this.#only === number),
        title: "Show only this person",
        onclick: () => this.#choose(number),
      },
      dot(number),
      `Person ${number}`,
    );
    const track = h("div", { class: "track" }, h("i", { class: "here", "aria-hidden": "true" }));
    for (const [from, to] of unjudged(person, this.#duration, this.#running)) {
      const hatch = h("i", { class: "hatched", title: this.#running ? "not processed yet" : "not processed" });
      hatch.style.left = `${(100 * from) / this.#duration}%`;
      hatch.style.width = `${(100 * (to - from)) / this.#duration}%`;
      track.append(hatch);
    }
    for (const segment of segments(person, this.least)) {
      const strip = h("i", { class: "strip" });
      strip.style.background = colourOf(number);
      strip.style.opacity = String(FAINTEST + (1 - FAINTEST) * segment.score);
      const said = `${segment.label}, ${segment.start.toFixed(1)} to ${segment.end.toFixed(1)} s, ${percent(segment.score)}`;
      const part = h(
        "button",
        {
          type: "button",
          class: "segment",
          title: said,
          "aria-label": `Person ${number}: ${said}`,
          onclick: () => this.onseek(segment.start),
        },
        strip,
        h("span", { "aria-hidden": "true" }, segment.label),
      );
      part.style.left = `${(100 * segment.start) / this.#duration}%`;
      part.style.width = `${(100 * (segment.end - segment.start)) / this.#duration}%`;
      track.append(part);
    }
    return h("div", { class: "lane", role: "group", "aria-label": `Person ${number}` }, who, track);
  }

  #choose(number) {
    this.#only = this.#only === number ? null : number;
    this.#change();
  }

  #change() {
    this.value.textContent = this.least.toFixed(2);
    this.rows.replaceChildren(...this.#people.map((person) => this.#lane(person)));
    this.onchange();
  }
}

function dot(person) {
  const mark = h("i", { class: "dot", "aria-hidden": "true" });
  mark.style.background = colourOf(person);
  return mark;
}
