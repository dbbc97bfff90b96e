// A list of short texts that the user types, as chips.

import { field, h } from "./dom.js";

/** A field that adds chips: Enter or a comma adds one, a pasted list many, Backspace in the empty field takes the last away. */
export class Chips {
  #texts = [];
  #list;
  #field;
  #told;

  /** name: of the list, in the plural; hint: below the field; onchange(): the texts are others. */
  constructor(name, hint, onchange) {
    this.onchange = onchange;
    this.#list = h("ul", { class: "chips", "aria-label": `Your ${name.toLowerCase()}` });
    this.#field = h("input", {
      type: "text",
      maxlength: 10_000,
      autocomplete: "off",
      onkeydown: (event) => this.#key(event),
      oninput: () => /[,\n]/.test(this.#field.value) && this.#takeIn(),
      onchange: () => this.#takeIn(),
      onpaste: (event) => this.#pasted(event),
    });
    this.#told = h("p", { class: "unseen", role: "status" });
    this.element = h("div", { class: "fields" }, field(name, this.#field, hint), this.#list, this.#told);
  }

  get texts() {
    return [...this.#texts];
  }

  /** Those that are not there yet. */
  add(texts) {
    const fresh = [...new Set(texts.map((text) => text.trim()).filter(Boolean))].filter((text) => !this.#texts.includes(text));
    if (!fresh.length) return;
    this.#texts.push(...fresh);
    this.#show(`Added: ${fresh.join(", ")}`);
  }

  #takeIn(more = "") {
    const typed = this.#field.value + more;
    this.#field.value = "";
    this.add(typed.split(/[,\r\n]+/));
  }

  /** A field of one line would join the lines of a list. */
  #pasted(event) {
    const text = event.clipboardData.getData("text/plain");
    if (!/[,\n]/.test(text)) return;
    event.preventDefault();
    this.#takeIn(text);
  }

  #key(event) {
    if (event.key === "Enter") this.#takeIn();
    else if (event.key === "Backspace" && !this.#field.value && this.#texts.length) this.#remove(this.#texts.length - 1, this.#field);
  }

  #remove(index, next = null) {
    const [text] = this.#texts.splice(index, 1);
    this.#show(`Removed: ${text}`);
    (next ?? this.#list.children[Math.min(index, this.#texts.length - 1)]?.querySelector("button") ?? this.#field).focus();
  }

  #show(told) {
    this.#list.replaceChildren(
      ...this.#texts.map((text, index) =>
        h(
          "li",
          {},
          h("span", {}, text),
          h("button", { type: "button", "aria-label": `Remove ${text}`, onclick: () => this.#remove(index) }, "×"),
        ),
      ),
    );
    this.#told.textContent = told;
    this.onchange();
  }
}
