// One run of a task at a time: what it says while it is sent, waits and runs, and how it ends.

import { Problem, Stopped, post } from "./api.js";
import { bytes, h, seconds } from "./dom.js";
import { Job } from "./jobs.js";
import { resetDeclined } from "./api_key.js";
import { drop, keep, kept } from "./saved_job.js";

const TICK_MS = 100;
const COUNTED = { steps: "Step", levels: "Level", windows: "Window", views: "View", images: "Image" }; // units of progress that are told
const KEYS = matchMedia("(hover: hover) and (min-width: 601px)"); // phones have no Ctrl
const running = new Set(); // runners

addEventListener("beforeunload", (event) => running.size && event.preventDefault());

export class TaskRunner {
  #blocked = "";
  #running = null; // AbortController
  #ended = Promise.resolve();
  #began = 0;
  #timer = 0;
  #doing = "";
  #shown = ""; // name of the input whose answer is shown; empty: none is
  #priority = {}; // options of the next run

  /**
   * task: as in registry.js; work(session): asks the service with session.ask and shows the answers; onstop(words): keep what is there, and label
   * it; take(files): the user's, wherever they were dropped; restore(sent): puts an input back that a job was asked with before the page was
   * loaded again.
   */
  constructor(task, work, { onstop = () => {}, restore = () => {} } = {}) {
    Object.assign(this, { task, work, onstop, restore });
    this.take = () => {};
    this.first = null; // runs the first sample, where the tab has samples
    this.onrun = () => {};
    this.onstale = () => {};
    this.runButton = h("button", { type: "button", class: "run", onclick: () => this.run() }, "Run");
    this.stopButton = h("button", { type: "button", class: "stop", onclick: () => this.stop() }, "Stop");
    this.bar = h("progress", { "aria-label": "Progress", max: 1, hidden: true });
    this.line = h("p", { class: "line" });
    this.announcer = h("p", { role: "status", class: "unseen" });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.controls = h("div", { class: "controls" }, this.line, this.bar, h("div", { class: "buttons" }, this.runButton, this.stopButton));
    this.#settle();
  }

  get busy() {
    return this.#running !== null;
  }

  /** The reason why it cannot run, or "" if it can. Returns the one before. */
  block(reason) {
    const before = this.#blocked;
    this.#blocked = reason;
    if (!this.#running) {
      this.#settle();
      this.#say(reason || (KEYS.matches ? "Ready to run. Ctrl+Enter does, too." : "Ready to run."));
    }
    return before;
  }

  /** The input is another one: what is shown belongs to an earlier one, and an error is told of no longer. */
  changed() {
    this.error.hidden = true;
    if (this.#shown) this.onstale(this.#shown);
  }

  /** What is shown from now on belongs to the input of this name; empty: nothing is shown. */
  shows(name) {
    this.#shown = name;
    this.onstale("");
  }

  async run(resumed = null) {
    if (this.#running || (this.#blocked && !resumed)) return;
    const aborting = (this.#running = new AbortController());
    running.add(this);
    const session = new Session(this, aborting.signal, resumed, this.#priority);
    this.#priority = {};
    this.#ended = this.#run(session);
    await this.#ended;
  }

  /** Runs, whatever runs now. */
  async runAgain() {
    this.stop();
    await this.#ended;
    await this.run();
  }

  /** Runs the first sample, unasked: behind what others ask for. */
  async runFirst() {
    this.#priority = { priority: "low" };
    await this.first();
  }

  /** Goes on with a job that was followed before the page was loaded again, if there is one. */
  async resume() {
    const job = await kept(this.task);
    if (!job) return;
    if (job.sent.parts.every(([, blob]) => blob)) await this.restore(job.sent);
    await this.run(job);
  }

  async #run(session) {
    this.#began = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.error.hidden = true;
    resetDeclined();
    this.progress(null);
    this.#settle();
    this.doing("Starting", false);
    this.onrun();
    try {
      await this.work(session);
      this.#end(`Done in ${seconds(performance.now() - this.#began)}`);
    } catch (error) {
      if (error instanceof Stopped) {
        const counted = Object.values(COUNTED).some((word) => this.#doing.startsWith(word));
        this.#end(`Stopped${counted ? ` at ${this.#doing.toLowerCase()}` : ""}`);
        this.onstop(this.line.textContent);
      } else {
        this.#end("Failed: see the message");
        this.#show(error);
        this.onstop("");
      }
    }
  }

  stop() {
    this.#running?.abort();
  }

  /** Does something beside a run, such as a download. Its problem is shown like that of a run. */
  async aside(work) {
    this.error.hidden = true;
    resetDeclined();
    try {
      await work();
    } catch (error) {
      this.#show(error);
    }
  }

  /** What is being done. `announce`: also to screen readers, who hear no counting. */
  doing(text, announce = true) {
    this.#doing = text;
    if (announce) this.announcer.textContent = text;
    this.#tick();
  }

  /** A share of the work, or null while nobody knows. */
  progress(share) {
    this.bar.hidden = false;
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
  }

  #show(error) {
    const problem = error instanceof Problem ? error : new Problem({ title: "This page failed", status: -1, detail: String(error) });
    this.error.replaceChildren(
      h("strong", {}, problem.title),
      h("p", {}, problem.field ? h("code", {}, problem.field) : null, problem.field ? ": " : "", problem.detail),
      h("p", {}, problem.advice),
      problem.request_id ? h("p", { class: "id" }, "Request ", h("code", {}, problem.request_id)) : "",
    );
    this.error.hidden = false;
  }

  #end(text) {
    clearInterval(this.#timer);
    this.#running = null;
    running.delete(this);
    this.bar.hidden = true;
    this.#settle();
    this.#say(text);
  }

  #settle() {
    const busy = this.#running !== null;
    this.runButton.disabled = busy || this.#blocked !== "";
    this.stopButton.disabled = !busy;
  }

  #say(text) {
    this.#doing = "";
    this.line.textContent = this.announcer.textContent = text;
  }

  #tick() {
    if (this.#running) this.line.textContent = `${this.#doing} · ${((performance.now() - this.#began) / 1000).toFixed(1)} s`;
  }
}

/** What the work of one run may do. */
class Session {
  #runner;
  #signal;
  #resumed;
  #priority;

  constructor(runner, signal, resumed, priority) {
    this.#runner = runner;
    this.#signal = signal;
    this.#resumed = resumed;
    this.#priority = priority;
  }

  /** What the job was asked with that this run goes on with: as requestAsJob has it, files null that were too large to keep. null: it is a new one. */
  get sent() {
    return this.#resumed?.sent ?? null;
  }

  /** What is shown from now on belongs to the input of this name. */
  shows(name) {
    this.#runner.shows(name);
  }

  /** What is being done, in words. */
  doing(words) {
    this.#runner.doing(words);
  }

  /** POST {parts: [[part, blob, name], …], options}; resolves with the answer. */
  ask(path, sent) {
    return post(path, this.#prioritised(sent), this.#hear(() => {}), this.#signal);
  }

  /** The same of one of many requests: the work itself tells how far it has come. */
  requestInBackground(path, sent) {
    return post(path, sent, { sent() {}, event() {} }, this.#signal);
  }

  /** How far the work has come. */
  tell(done, total, unit) {
    tell(this.#runner, { done, total, unit });
  }

  /**
   * The same as a job, which keeps its answer for further downloads: {job, answer}. onpreview(data) hears what can be shown before. Whoever gets
   * the job must forget() it some time.
   */
  async requestAsJob(path, sent, onpreview = () => {}) {
    const hear = this.#hear(onpreview);
    const job = this.#resumed ? new Job(this.#resumed.id) : await Job.submit(path, this.#prioritised(sent), hear, this.#signal);
    try {
      if (!this.#resumed) await keep(this.#runner.task, job.id, sent);
      return { job, answer: await job.answer(hear, this.#signal) };
    } catch (error) {
      job.forget();
      throw error;
    } finally {
      await drop(job.id);
    }
  }

  #prioritised(sent) {
    return { ...sent, options: { ...sent.options, ...this.#priority } };
  }

  #hear(onpreview) {
    const runner = this.#runner;
    runner.doing(this.#resumed ? "Following it again" : "Sending");
    return {
      sent(loaded, total) {
        if (loaded < total) runner.progress(loaded / total);
        else runner.progress(null);
        runner.doing(
          loaded < total ? `Sent ${bytes(loaded)} of ${bytes(total)}` : `Sent ${bytes(total)}, waiting for the service`,
          loaded === total,
        );
      },
      event(name, data) {
        if (name === "queued") runner.doing(data.place ? `Place ${data.place} in the queue` : "Next in the queue");
        else if (name === "started") runner.doing("It has begun");
        else if (name === "progress") tell(runner, data);
        else if (name === "preview") onpreview(data);
      },
    };
  }
}

function tell(runner, { done, total, unit }) {
  const word = COUNTED[unit];
  if (!word) return;
  const quarter = Math.max(1, Math.ceil(total / 4));
  runner.progress(done / total);
  runner.doing(`${word} ${done} of ${total}`, done % quarter === 0);
}
