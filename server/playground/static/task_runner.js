// Runs a task, one run at a time, and shows its progress and its end.

import { Problem, Stopped, post } from "./api.js";
import { bytes, h, seconds } from "./dom.js";
import { Job } from "./jobs.js";
import { resetDeclined } from "./api_key.js";
import { drop, keep, kept } from "./saved_job.js";

const TICK_MS = 100;
const COUNTED = { steps: "Step", levels: "Level", windows: "Window", views: "View", images: "Image" }; // units of progress that are shown
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
  #shown = ""; // name of the input whose result is shown; empty if none is
  #priority = {}; // options of the next run

  /**
   * task: as in registry.js; work(session): asks the service with session.ask and shows the answers; onstop(words): keep what is there, and label
   * it; take(files): the user's, wherever they were dropped; restore(sent): restores the input of a job that was started before the page was
   * reloaded.
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

  /** Sets the reason why it cannot run, or "" if it can. Returns the previous one. */
  block(reason) {
    const before = this.#blocked;
    this.#blocked = reason;
    if (!this.#running) {
      this.#settle();
      this.#say(reason || (KEYS.matches ? "Ready to run (Ctrl+Enter)." : "Ready to run."));
    }
    return before;
  }

  /** The input has changed: the shown result belongs to an earlier one, and an error is no longer shown. */
  changed() {
    this.error.hidden = true;
    if (this.#shown) this.onstale(this.#shown);
  }

  /** Sets the name of the input that the shown result belongs to; empty if nothing is shown. */
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

  /** Stops the current run, if there is one, and runs again. */
  async runAgain() {
    this.stop();
    await this.#ended;
    await this.run();
  }

  /** Runs the first sample at low priority, since nobody asked for it. */
  async runFirst() {
    this.#priority = { priority: "low" };
    await this.first();
  }

  /** Resumes following a job that was started before the page was reloaded, if there is one. */
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

  /** Does something outside a run, such as a download. Its errors are shown like those of a run. */
  async aside(work) {
    this.error.hidden = true;
    resetDeclined();
    try {
      await work();
    } catch (error) {
      this.#show(error);
    }
  }

  /** Shows what is being done. `announce`: also to screen readers, which do not read every count. */
  doing(text, announce = true) {
    this.#doing = text;
    if (announce) this.announcer.textContent = text;
    this.#tick();
  }

  /** Shows the finished share of the work, or null if it is unknown. */
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

/** The interface for the work of one run. */
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

  /** The input of the job that this run resumes, as for requestAsJob; files that were too large to keep are null. null for a new run. */
  get sent() {
    return this.#resumed?.sent ?? null;
  }

  /** Sets the name of the input that the shown result belongs to. */
  shows(name) {
    this.#runner.shows(name);
  }

  /** Shows what is being done. */
  doing(words) {
    this.#runner.doing(words);
  }

  /** POST {parts: [[part, blob, name], …], options}; resolves with the result. */
  ask(path, sent) {
    return post(path, this.#prioritised(sent), this.#hear(() => {}), this.#signal);
  }

  /** Does the same for one of many requests, whose progress the work itself reports. */
  requestInBackground(path, sent) {
    return post(path, sent, { sent() {}, event() {} }, this.#signal);
  }

  /** Reports progress. */
  tell(done, total, unit) {
    tell(this.#runner, { done, total, unit });
  }

  /**
   * Does the same as a job, which keeps its result for further downloads: {job, answer}. onpreview(data) receives previews. The caller must
   * forget() the job at some time.
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
    runner.doing(this.#resumed ? "Following the job again" : "Sending");
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
        if (name === "queued") runner.doing(data.place ? `Position ${data.place} in the queue` : "Next in the queue");
        else if (name === "started") runner.doing("Started");
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
