// The page: which tabs there are, which is open, whether the service is ready.

import { getJson, coalesce } from "./api.js";
import { commandLine, h, seconds } from "./dom.js";
import { filesOf } from "./dropped_files.js";
import { key, keyButton } from "./api_key.js";
import { TABS } from "./tabs.js";
import { themeButton } from "./theme.js";

const MODELS_EVERY_MS = 5000;
const FIRST_SAMPLE = "first-sample"; // in localStorage: it has run in this browser
const main = document.getElementById("main");
const tablist = document.getElementById("tabs");
const look = coalesce(readModels);
const health = document.getElementById("health");
const open = new Map(); // task → { tab, panel, runner }

themeButton(document.getElementById("theme"));
keyButton(document.getElementById("key"));
addEventListener("hashchange", () => show(asked()));
addEventListener("keydown", shortcut);
tablist.addEventListener("keydown", arrows);
addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("over")));
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("over"));
addEventListener("drop", dropped);
document.addEventListener("handover", onFileHandedOver);
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
async function readModels() {
  const began = performance.now();
  const before = key();
  let models, folders;
  try {
    ({ models, folders } = await getJson("v1/models"));
  } catch (problem) {
    tell("bad", problem.status ? problem.title : "unreachable");
    return;
  }
  const ready = models.filter((model) => model.state === "ready");
  const took = key() === before ? ` · ${seconds(performance.now() - began)}` : ""; // else the user was asked for a key meanwhile
  tell(ready.length ? "good" : "bad", ready.length ? `ready${took}` : "no bundle is ready");
  for (const { task, title, load, tasks = [task], serves = servesOneOf(tasks), always = false } of TABS) {
    const served = ready.filter(serves);
    const shows = served.length || (always && ready.length);
    if (shows && !open.has(task)) add(task, title, load, served, folders);
    else if (!shows && open.has(task) && task !== current()) remove(task);
    else if (served.length && open.has(task) && !open.get(task).models.length) renew(task, served);
  }
  wait(models, folders);
  listUnavailable(models);
  if (open.size && !current()) {
    await show(asked());
    runFirstSample(open.get(current())?.runner);
  }
}

/** Once per browser, so that nobody meets an empty page; not where that costs a key or makes others wait. */
async function runFirstSample(runner) {
  if (!runner?.first || runner.busy || key() || localStorage.getItem(FIRST_SAMPLE)) return;
  const { queue } = await getJson("v1/status");
  if (queue.some(({ waiting }) => waiting)) return;
  localStorage.setItem(FIRST_SAMPLE, "yes");
  await runner.runFirst();
}

function servesOneOf(tasks) {
  return (model) => tasks.includes(model.task) && tasks.includes(model.route);
}

function tell(kind, text) {
  health.className = `health ${kind}`;
  health.textContent = text;
}

function wait(models, folders) {
  const shown = document.getElementById("waiting");
  const news = JSON.stringify([models, folders]);
  if (!open.size && shown?.dataset.of === news) return; // the reader may be copying from it
  shown?.remove();
  if (open.size) return;
  const states = models.map(stateOf);
  main.append(
    h(
      "div",
      { id: "waiting", class: "hint", "data-of": news },
      h("p", {}, "No bundle for a task of this page is ready. The page checks again every few seconds."),
      states.length ? h("ul", {}, states) : emptyFolders(folders),
    ),
  );
}

function stateOf(model) {
  return h("li", {}, `${model.name}@${model.version}: ${model.state}${model.reason ? `, ${model.reason}` : ""}`);
}

/** The bundles that cannot be chosen in any tab, and why. */
function listUnavailable(models) {
  const unavailable = open.size ? models.filter((model) => model.state === "unavailable") : [];
  const shown = document.getElementById("unavailable");
  const news = JSON.stringify(unavailable.map(({ name, version, reason }) => [name, version, reason]));
  if (shown?.dataset.of === news) return; // the reader may have it open
  shown?.remove();
  if (!unavailable.length) return;
  const count = unavailable.length === 1 ? "1 bundle is" : `${unavailable.length} bundles are`;
  const list = h("ul", {}, unavailable.map(stateOf));
  main.prepend(h("details", { id: "unavailable", class: "hint", "data-of": news }, h("summary", {}, `${count} unavailable`), list));
}

/** What to do where there is no bundle at all. */
function emptyFolders(folders) {
  if (!folders.length) return h("p", {}, "No worker has reported its bundle folders yet.");
  const command = `opsin import model.safetensors -o '${`${folders[0]}/mine`.replaceAll("'", "'\\''")}' --license LICENCE`;
  return h(
    "div",
    {},
    h("p", {}, "There are no bundles in ", ...folders.flatMap((one, index) => [index ? " or " : "", h("code", {}, one)]), "."),
    h(
      "p",
      {},
      "The starters are in the folder ",
      h("code", {}, "bundles"),
      " of Opsin's repository. This command imports a checkpoint, which is then served within seconds:",
    ),
    commandLine(command),
  );
}

function add(task, title, load, models, folders) {
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
  open.set(task, { tab, panel, load, models, folders, runner: null });
  const order = TABS.map((known) => known.task).filter((known) => open.has(known));
  tablist.replaceChildren(...order.map((known) => open.get(known).tab));
  main.append(panel);
}

/** A tab that had nothing to work with is filled again. */
function renew(task, models) {
  const entry = open.get(task);
  entry.panel.replaceChildren();
  Object.assign(entry, { models, loading: null });
  if (task === current()) show(task);
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
    entry.loading = mount(entry);
  }
  await entry.loading;
}

/** A tab that cannot be loaded says so: its files may have been asked for while the service was away. */
async function mount(entry) {
  try {
    const module = await entry.load();
    entry.runner = await module.mount(entry.panel, entry.models, entry.folders);
  } catch (error) {
    entry.panel.className = "";
    entry.panel.replaceChildren(
      h(
        "div",
        { class: "hint failed", role: "alert" },
        h("p", {}, h("strong", {}, "This tab could not be loaded.")),
        h("p", {}, String(error.message ?? error)),
        h("button", { type: "button", onclick: () => location.reload() }, "Reload"),
      ),
    );
    return;
  }
  entry.runner.resume(); // a run that goes on is not waited for
}

/** Files, and those in folders, that are dropped anywhere are for the tab that is open. */
async function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("over");
  const runner = open.get(current())?.runner;
  const files = await filesOf(event.dataTransfer);
  if (files.length) runner?.take(files);
}

/** A file that was given to a tab that does not take it. */
async function onFileHandedOver({ detail: { task, file } }) {
  location.hash = task;
  await show(task);
  open.get(task).runner?.take([file]);
}

/** Ctrl+Enter runs, Esc stops. */
function shortcut(event) {
  const runner = open.get(current())?.runner;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) runner?.run();
  else if (event.key === "Escape") runner?.stop();
}

function arrows(event) {
  const tabs = [...tablist.children];
  const here = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: -1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = tabs.at(to % tabs.length);
  next.focus();
  next.click();
}
