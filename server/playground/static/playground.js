// The page: which tabs there are, which is open, whether the service is ready.

import { getJson } from "./api.js";
import { h, seconds } from "./dom.js";
import { TABS } from "./registry.js";
import { themeButton } from "./theme.js";

const MODELS_EVERY_MS = 5000;
const main = document.getElementById("main");
const tablist = document.getElementById("tabs");
const health = document.getElementById("health");
const open = new Map(); // task → { tab, panel, runner }

themeButton(document.getElementById("theme"));
addEventListener("hashchange", () => show(asked()));
addEventListener("keydown", shortcut);
tablist.addEventListener("keydown", arrows);
await look();
setInterval(() => document.hidden || look(), MODELS_EVERY_MS);

function asked() {
  const task = location.hash.slice(1);
  return open.has(task) ? task : (current() ?? open.keys().next().value);
}

function current() {
  for (const [task, { panel }] of open) if (!panel.hidden) return task;
}

/** Reads what is served. Tabs that are open stay; a task that nobody serves any more loses its tab unless it is the open one. */
async function look() {
  const began = performance.now();
  let models;
  try {
    ({ models } = await getJson("v1/models"));
  } catch (problem) {
    tell("bad", problem.status ? problem.title : "not reachable");
    return;
  }
  const ready = models.filter((model) => model.state === "ready");
  tell(ready.length ? "good" : "bad", ready.length ? `ready · ${seconds(performance.now() - began)}` : "no bundle is ready");
  for (const { task, title, load } of TABS) {
    const served = ready.filter((model) => model.task === task);
    if (served.length && !open.has(task)) add(task, title, load, served);
    else if (!served.length && open.has(task) && task !== current()) remove(task);
  }
  wait(models);
  if (open.size && !current()) show(asked());
}

function tell(kind, text) {
  health.className = `health ${kind}`;
  health.textContent = text;
}

function wait(models) {
  document.getElementById("waiting")?.remove();
  if (open.size) return;
  const states = models.map((model) =>
    h("li", {}, `${model.name}@${model.version}: ${model.state}${model.reason ? `, ${model.reason}` : ""}`),
  );
  main.append(
    h(
      "div",
      { id: "waiting", class: "hint" },
      h("p", {}, "No ready bundle serves a task that this page knows. It looks again every few seconds."),
      h("ul", {}, states),
    ),
  );
}

function add(task, title, load, models) {
  const tab = h(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${task}`,
      "aria-controls": `panel-${task}`,
      "aria-selected": "false",
      tabindex: "-1",
      onclick: () => (location.hash = task),
    },
    title,
  );
  const panel = h("section", { role: "tabpanel", id: `panel-${task}`, "aria-labelledby": `tab-${task}`, hidden: true });
  open.set(task, { tab, panel, load, models, runner: null });
  const order = TABS.map((known) => known.task).filter((known) => open.has(known));
  tablist.replaceChildren(...order.map((known) => open.get(known).tab));
  main.append(panel);
}

function remove(task) {
  const { tab, panel } = open.get(task);
  tab.remove();
  panel.remove();
  open.delete(task);
}

async function show(task) {
  if (!open.has(task)) return;
  if (task !== current()) scrollTo(0, 0); // where the input is
  for (const [other, { tab, panel }] of open) {
    const chosen = other === task;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    panel.hidden = !chosen;
  }
  const entry = open.get(task);
  if (!entry.loading) {
    entry.loading = entry.load().then((module) => (entry.runner = module.mount(entry.panel, entry.models)));
  }
  await entry.loading;
}

/** Ctrl+Enter runs, Esc stops. */
function shortcut(event) {
  const runner = open.get(current())?.runner;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) runner?.run();
  else if (event.key === "Escape") runner?.stop();
}

function arrows(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const tabs = [...tablist.children];
  const next = tabs[(tabs.indexOf(document.activeElement) + by + tabs.length) % tabs.length];
  next.focus();
  next.click();
}
