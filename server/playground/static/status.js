// The status page: GET /v1/status every few seconds, while somebody looks.

import { getBlob, getJson, coalesce } from "./api.js";
import { Chart } from "./chart.js";
import { h, percent, seconds } from "./dom.js";
import { key, keyButton } from "./api_key.js";
import { themeButton } from "./theme.js";

const EVERY_MS = 5000;
const count = (value) =>
  value >= 1e6 ? `${+(value / 1e6).toPrecision(3)} M` : value >= 1e4 ? `${+(value / 1e3).toPrecision(3)} k` : String(+value.toPrecision(3));
const perSecond = (value) => `${count(value)}/s`;
const place = (id) => document.getElementById(id);
const drawn = new Map();
const refresh = coalesce(readStatus);

const charts = {
  rate: new Chart("Requests and items", ["requests", "items"], perSecond),
  latency: new Chart("Latency", ["median", "95 %"], seconds),
  batch: new Chart("Items per batch", ["items"], count),
  tokens: new Chart("Tokens", ["in", "out"], perSecond),
};

themeButton(place("theme"));
keyButton(place("key"));
place("metrics").addEventListener("click", metrics);
place("charts").append(...Object.values(charts).map((chart) => chart.element));
place("logarithmic").addEventListener("change", ({ target }) => Object.values(charts).forEach((chart) => chart.scale(target.checked)));
await refresh();
setInterval(() => document.hidden || refresh(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

async function readStatus() {
  try {
    draw(await getJson("v1/status"));
    place("problem").hidden = true;
  } catch (error) {
    complain(error, `The figures below are out of date; the page tries again every ${EVERY_MS / 1000} s.`);
  }
}

/** A link cannot send a key. */
async function metrics(event) {
  if (!key()) return;
  event.preventDefault();
  try {
    location.assign(URL.createObjectURL(await getBlob("metrics", "text/plain")));
  } catch (error) {
    complain(error, error.advice ?? "");
  }
}

function complain(error, more) {
  const problem = place("problem");
  problem.hidden = false;
  problem.textContent = `${error.title ?? "This page failed"}: ${error.message}. ${error.status === 401 || error.status === 403 ? error.advice : more}`;
}

function draw(status) {
  const { history } = status;
  const rate = (counts) => counts.map((value) => value / history.step_s);
  const step = history.step_s * 1000;
  const times = { end: Math.floor(Date.parse(status.time) / step) * step, step }; // where the last complete step ends
  charts.rate.draw([rate(history.requests), rate(history.items)], times);
  charts.latency.draw([history.p50_ms, history.p95_ms], times);
  charts.batch.draw([history.batch_size], times);
  charts.tokens.draw([rate(history.tokens_in), rate(history.tokens_out)], times, saved(history));
  place("when").textContent = `${new Date(status.time).toLocaleTimeString()}, all gateways and workers`;

  const sum = (key) => status.queue.reduce((total, row) => total + row[key], 0);
  const tiles = [
    ["Gateways", status.gateways],
    ["Workers ready", `${status.workers.filter((worker) => worker.state === "ready").length} of ${status.workers.length}`],
    ["Waiting", sum("waiting")],
    ["Running", sum("running")],
    ["Jobs queued", status.jobs.queued],
    ["Jobs running", status.jobs.running],
    ["Restarts", status.workers.reduce((total, worker) => total + worker.restarts, 0)],
  ];
  if (differs("now", tiles)) {
    place("now").replaceChildren(...tiles.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
  }

  table(
    "queue",
    "The queue is empty.",
    ["Bundle", "Priority", "Waiting", "Running", "Oldest"],
    status.queue,
    (row) => [row.bundle, row.priority, row.waiting, row.running, seconds(row.oldest_s * 1000)],
  );
  table(
    "jobs",
    "No asynchronous job is in progress.",
    ["Bundle", "State", "Progress", "Age"],
    status.long_jobs,
    (job) => [job.bundle, job.state, job.progress ? steps(job.progress) : "–", seconds(job.age_s * 1000)],
  );
  table(
    "bundles",
    "No bundle is being served.",
    ["Bundle", "Median", "95 %", "Measured", "Batch budget", "Merging"],
    status.bundles,
    (row) => [
      `${row.model}@${row.version}`,
      row.p50_ms === null ? "–" : seconds(row.p50_ms),
      row.p95_ms === null ? "–" : seconds(row.p95_ms),
      row.items_per_second ? perSecond(row.items_per_second) : "–",
      row.batch_budget || "–",
      row.rung ?? "off",
    ],
  );
  document.getElementById("refused").closest("section").hidden = !status.refused.length;
  table("refused", "", ["Bundle", "Reason"], status.refused, (row) => [`${row.model}@${row.version}`, row.reason]);
  table(
    "workers",
    "No worker is running.",
    ["Worker", "State", "Device", "Serves", "Restarts"],
    status.workers,
    (row) => [row.id, row.state, row.device, row.bundles.join(", ") || "–", row.restarts],
  );
  table(
    "letters",
    "There are no dead letters.",
    ["Time", "Bundle", "Reason"],
    status.dead_letters,
    (row) => [new Date(row.time).toLocaleString(), row.bundle, row.reason],
  );
}

/** Of all tokens of the quarter of an hour. */
function saved({ tokens_in: entered, tokens_out: left }) {
  const [before, after] = [entered, left].map((counts) => counts.reduce((sum, value) => sum + value, 0));
  return before ? `${percent(1 - after / before)} saved by merging` : "";
}

/** How far a job is: a bar, and the same in words. */
function steps({ done, total, unit }) {
  return h("span", { class: "steps" }, h("progress", { max: total, value: done, "aria-hidden": "true" }), `${done} of ${total} ${unit}`);
}

/** Whether a part of the page would be another one than it is. One that stays keeps what the reader has selected, and costs nothing. */
function differs(id, content) {
  const now = JSON.stringify(content);
  if (drawn.get(id) === now) return false;
  drawn.set(id, now);
  return true;
}

function table(id, empty, heads, rows, cells) {
  if (!differs(id, rows)) return;
  const cell = (value) => h("td", { class: typeof value === "number" ? "number" : "" }, value instanceof Element ? value : String(value));
  const filled = h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head) => h("th", { scope: "col" }, head)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) => h("tr", {}, cells(row).map(cell))),
    ),
  );
  place(id).replaceChildren(rows.length ? filled : h("p", { class: "caption" }, empty));
}
