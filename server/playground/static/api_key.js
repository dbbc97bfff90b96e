// The API key of this tab. It is kept in sessionStorage, sent only in a header, and asked for if the service requires one.

import { h } from "./dom.js";

const KEY = "key";
const SENDABLE = /^[\x21-\x7e]+$/; // in a header
let asking = null; // Promise of the dialog that is open
let declined = false;
let button = null;

/** Empty if there is none. */
export const key = () => sessionStorage.getItem(KEY) ?? "";

/** Headers of every request. Not `Authorization`: a proxy may use it for a password. */
export const authHeaders = () => (key() ? { "X-API-Key": key() } : {});

/** The button at the top shows whether there is a key, and opens the dialog. */
export function keyButton(element) {
  button = element;
  button.addEventListener("click", () => openDialog("API key", ""));
  tell();
}

/** The user has started something new: ask again even if they declined before. */
export function resetDeclined() {
  declined = false;
}

/** Returns whether a request that was rejected with 401 can be repeated, because there is a different key now. */
export async function askForKey(sent, reason) {
  if (key() !== sent) return true;
  return !declined && openDialog("This service requires an API key", sent && reason);
}

/** Resolves with whether a key was entered. */
function openDialog(title, reason) {
  asking ??= ask(title, reason).finally(() => (asking = null));
  return asking;
}

function ask(title, reason) {
  const input = h("input", { id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", value: key() });
  const wrong = h("p", { role: "alert", class: "refusal", hidden: !reason }, reason);
  const show = h("input", { type: "checkbox", onchange: () => (input.type = show.checked ? "text" : "password") });
  const forget = h("button", { type: "button", disabled: !key(), onclick: () => close("") }, "Forget");
  const form = h(
    "form",
    { onsubmit: use },
    h("h2", { id: "key-title" }, title),
    wrong,
    h("label", { class: "field" }, h("span", {}, "Key"), input),
    h("label", { class: "check" }, show, h("span", {}, "Show")),
    h("p", { class: "caption" }, "Kept in this tab until it is closed, and sent only to this service."),
    h(
      "p",
      { class: "buttons" },
      h("button", { type: "submit", class: "run" }, "Use"),
      forget,
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
    ),
  );
  const aside = (event) => event.stopPropagation(); // Ctrl+Enter and Esc mean something to the page, too
  const dialog = h("dialog", { class: "card", "aria-labelledby": "key-title", onkeydown: aside }, form);
  let given = false;

  function use(event) {
    event.preventDefault();
    const text = input.value.trim();
    if (SENDABLE.test(text)) return close(text);
    wrong.hidden = false;
    wrong.textContent = "This is not a key: keys are opsin_ followed by 64 letters and digits.";
  }

  function close(text) {
    given = text !== "";
    if (given) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
    dialog.close();
  }

  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      tell();
      declined = !given;
      resolve(given);
    }),
  );
}

function tell() {
  if (button) button.textContent = key() ? "Key: in use" : "Key: none";
}
