// Pictures in a grid, best first. The arrow keys walk it.

import { h } from "../../dom.js";
import { thumbnail } from "./thumbnails.js";

export class Found {
  #cells = new Map(); // picture → its button

  /** onchoose(picture): one was clicked. */
  constructor(onchoose) {
    this.onchoose = onchoose;
    this.element = h("ol", { class: "found", "aria-label": "Images, best first", onkeydown: (event) => this.#walk(event) });
  }

  /** ranked: [{picture, cosine or null}, …]. */
  show(ranked) {
    const focused = document.activeElement;
    const items = ranked.map(({ picture, cosine }, index) => {
      const cell = this.#cellOf(picture);
      const score = cosine === null ? (picture.failed ? "failed" : "") : cosine.toFixed(2);
      cell.children[2].textContent = score;
      cell.title = picture.failed || "More like this";
      cell.tabIndex = index ? -1 : 0;
      cell.setAttribute("aria-label", cosine === null ? `${picture.name} ${score}` : `${picture.name}, rank ${index + 1}, ${score}`);
      return h("li", {}, cell);
    });
    this.element.replaceChildren(...items);
    const shown = new Set(ranked.map(({ picture }) => picture));
    for (const picture of this.#cells.keys()) if (!shown.has(picture)) this.#cells.delete(picture);
    if (this.element.contains(focused)) focused.focus({ preventScroll: true });
  }

  #cellOf(picture) {
    if (!this.#cells.has(picture)) {
      const small = thumbnail(picture.small, picture.name);
      small.setAttribute("aria-hidden", "true");
      const parts = [small, h("span", { class: "name" }, picture.name), h("span", { class: "cosine" })];
      this.#cells.set(picture, h("button", { type: "button", onclick: () => this.onchoose(picture) }, parts));
    }
    return this.#cells.get(picture);
  }

  #walk(event) {
    const cells = [...this.element.querySelectorAll("button")];
    const here = cells.indexOf(document.activeElement);
    const columns = cells.findIndex((cell) => cell.offsetTop > cells[0].offsetTop);
    const row = columns < 0 ? cells.length : columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, Home: -here, End: cells.length - 1 - here };
    const next = cells[here + steps[event.key]];
    if (!(event.key in steps) || here < 0) return;
    event.preventDefault();
    if (!next) return;
    cells[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
