// Elements by plain functions: h("p", { class: "hint" }, "text", otherElement).

/** An element. Properties that start with "on" are listeners; `false`, null and undefined leave an attribute out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** A labelled field: h()'s control inside its label. */
export function field(label, control, hint) {
  return h("label", { class: "field" }, h("span", {}, label), control, hint ? h("small", {}, hint) : null);
}

export function select(options, selected, properties = {}) {
  return h(
    "select",
    properties,
    options.map(([value, text]) => h("option", { value, selected: value === selected }, text)),
  );
}

/** Radio buttons in a row, of which one is on: [value, text] each. */
export function choice(legend, options, selected, onchange) {
  const name = `choice-${(choice.made = (choice.made ?? 0) + 1)}`;
  const radios = options.map(([value, text, title]) =>
    h(
      "label",
      { title },
      h("input", { type: "radio", name, value, checked: value === selected, onchange: () => onchange(value) }),
      h("span", {}, text),
    ),
  );
  return h("fieldset", { class: "choice" }, h("legend", {}, legend), radios);
}

/** A button that copies a text. Browsers give no clipboard to pages that come without TLS from another computer: then `shown` is selected. */
export function copyButton(text, shown) {
  const button = h(
    "button",
    {
      type: "button",
      async onclick() {
        try {
          await navigator.clipboard.writeText(text);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(shown);
          button.textContent = "Selected";
        }
        setTimeout(() => (button.textContent = "Copy"), 1500);
      },
    },
    "Copy",
  );
  return button;
}

/** A command to copy. */
export function commandLine(text) {
  const code = h("code", {}, text);
  return h("p", { class: "command" }, code, copyButton(text, code));
}

/** Lets the browser save a blob. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function fromBase64(text, type) {
  return new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type });
}

/** How far along an element a click was: 0 to 1. */
export function shareAlong(element, { clientX }) {
  const { left, width } = element.getBoundingClientRect();
  return Math.max(0, Math.min(1, (clientX - left) / width));
}

/** Three digits at most, rounded before the unit is chosen: 999.7 ms are 1.00 s. */
export function seconds(ms) {
  if (ms < 9.95) return `${ms.toFixed(ms < 0.995 ? 2 : 1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(ms < 99.95 ? 1 : 0)} ms`;
  return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
export const bytes = (count) => (count < 1e6 ? `${Math.ceil(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`);
