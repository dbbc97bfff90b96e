// What stands under every result: where the time went, the request's id, the same call elsewhere.

import { ROOT } from "./api.js";
import { copyButton, h, seconds } from "./dom.js";
import { key } from "./api_key.js";

const PHASES = [
  ["prepare_ms", "prepare"],
  ["queue_ms", "queue"],
  ["batch_wait_ms", "batch"],
  ["inference_ms", "model"],
];

/** timing: of an answer. Phases are those of the slowest item; what they leave of the total is spent around them. */
export function timingBar(timing) {
  const parts = PHASES.map(([key, name]) => [name, timing[key]]);
  const rest = timing.total_ms - parts.reduce((sum, [, ms]) => sum + ms, 0);
  if (rest > 0) parts.push(["rest", rest]);
  const segments = parts.map(([name, ms]) => {
    const segment = h("span", { class: `phase ${name}` });
    segment.style.flexGrow = String(ms);
    return segment;
  });
  const legend = parts.map(([name, ms]) =>
    h("li", {}, h("i", { class: `phase ${name}`, "aria-hidden": "true" }), `${name} ${seconds(ms)}`),
  );
  return h(
    "div",
    { class: "timing" },
    h("p", {}, h("strong", {}, seconds(timing.total_ms)), ` in the service, batch of ${timing.batch_size}`),
    h("div", { class: "phases", "aria-hidden": "true" }, segments),
    h("ul", { class: "legend" }, legend),
  );
}

/** answer: of the API; calls: {curl, Python, Command}; downloads: [[text, function], …]. */
export function report(answer, calls, downloads) {
  return h(
    "div",
    { class: "report" },
    answer.note && h("p", { class: "note" }, answer.note),
    timingBar(answer.timing),
    h("p", { class: "id" }, `${answer.model}@${answer.version} · request `, h("code", {}, answer.id)),
    h(
      "p",
      { class: "buttons" },
      downloads.map(([text, act]) => busyButton(text, act)),
    ),
    sameCall(calls),
  );
}

/** It rests while what it does goes on. */
function busyButton(text, act) {
  const button = h(
    "button",
    {
      type: "button",
      async onclick() {
        button.disabled = true;
        await act();
        button.disabled = false;
      },
    },
    text,
  );
  return button;
}

function sameCall(calls) {
  const blocks = Object.entries(calls).map(([name, text]) => {
    const code = h("pre", { tabindex: "0", role: "region", "aria-label": `The same call: ${name}` }, h("code", {}, text));
    return h("div", { class: "call" }, h("h3", {}, name, copyButton(text, code)), code);
  });
  return h("details", { class: "calls" }, h("summary", {}, "The same call with curl, Python or the command line"), blocks);
}

export const BASE = ROOT.href.replace(/\/$/, "");
export const quoted = (text) => (/^[\w.@:/=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const python = (value) => {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  return typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value);
};
/** For curl, which reads a file where a value of `-F` begins with @ or <, and a type behind a semicolon. */
export const formField = (name, value) => `${/^[@<]|;/.test(value) ? "--form-string" : "-F"} ${quoted(`${name}=${value}`)}`;
const each = (entries) => entries.flatMap(([name, value]) => [value].flat().map((one) => [name, one]));

/**
 * The call in three languages. files: part → file name, or a list of them; options: name → value, or a list of them. curl may have what the
 * others have not, and headers; the command may have other flags than options, and Python other keywords. byName: Python names every file, the first one, too.
 */
export function callsOf(
  task,
  files,
  options,
  { output = "", curlOnly = {}, headers = [], command: flagged = options, keywords: named = options, byName = false, python: show },
) {
  const parts = each(Object.entries(files)).map(([part, name]) => `-F ${quoted(`${part}=@${name}`)}`);
  const forms = each(Object.entries({ ...options, ...curlOnly })).map(([name, value]) => formField(name, value));
  const heads = headers.map((header) => `-H ${quoted(header)}`);
  if (key()) heads.unshift('-H "X-API-Key: $OPSIN_API_KEY"'); // Python and the command read that variable by themselves
  const curl = ["curl", ...heads, ...parts, ...forms, quoted(`${BASE}/v1/${task}`), output && `-o ${output}`]
    .filter(Boolean)
    .join(" \\\n  ");
  const keywords = Object.entries(named).map(([name, value]) => `, ${name}=${python(value)}`);
  const [first, ...others] = Object.entries(files);
  const given = [byName ? `${first[0]}=${python(first[1])}` : python(first[1]), ...others.map(([part, name]) => `${part}=${JSON.stringify(name)}`)].join(", ");
  const code = [
    "from opsin import Client\n",
    `with Client(${JSON.stringify(BASE)}) as client:`,
    `    result = client.${task.replaceAll("-", "_")}(${given}${keywords.join("")})`,
    `    ${show}\n`,
  ].join("\n");
  const flags = [
    ...others.map(([part, name]) => `--${part} ${quoted(name)}`),
    ...each(Object.entries(flagged)).map(([name, value]) => `--${name.replaceAll("_", "-")}${value === true ? "" : ` ${quoted(String(value))}`}`),
  ];
  const command = ["opsin", task, ...[first[1]].flat().map(quoted), ...flags, output && `-o ${output}`, `--url ${quoted(BASE)}`]
    .filter(Boolean)
    .join(" ");
  return { curl, Python: code, Command: command };
}
