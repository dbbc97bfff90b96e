// One run of a task at a time: what it says while it is sent, waits and runs, and how it ends.

import { Problem, Stopped, post } from "./api.js";
import { bytes, h, seconds } from "./dom.js";
import { Job } from "./jobs.js";

const TICK_MS = 100;
const COUNTED = { steps: "Step", levels: "Level", windows: "Window" }; // units of progress that are told

export class Runner {
  #blocked = "";
  #running = null; // AbortController
  #began = 0;
  #timer = 0;
  #said = "";
  #doing = "";

  /** work(session): asks the service with session.ask and shows the answers. onstop(): keep what is there, and label it. */
  constructor(work, onstop = () => {}) {
    this.work = work;
    this.onrun = () => {};
    this.onstop = onstop;
    this.runButton = h("button", { type: "button", class: "run", onclick: () => this.run() }, "Run");
    this.stopButton = h("button", { type: "button", class: "stop", onclick: () => this.stop() }, "Stop");
    this.bar = h("progress", { "aria-label": "Progress", max: 1, hidden: true });
    this.line = h("p", { class: "line" });
    this.announcer = h("p", { role: "status", class: "unseen" });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.controls = h("div", { class: "controls" }, this.line, this.bar, h("div", { class: "buttons" }, this.runButton, this.stopButton));
    this.#settle();
  }

  /** The reason why it cannot run, or "" if it can. */
  block(reason) {
    this.#blocked = reason;
    if (!this.#running) {
      this.#settle();
      this.#say(reason || "Ready to run. Ctrl+Enter does, too.");
    }
  }

  async run() {
    if (this.#running || this.#blocked) return;
    const running = (this.#running = new AbortController());
    this.#began = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.error.hidden = true;
    this.progress(null);
    this.#settle();
    this.doing("Starting", false);
    this.onrun();
    try {
      await this.work(new Session(this, running.signal));
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

  constructor(runner, signal) {
    this.#runner = runner;
    this.#signal = signal;
  }

  /** POST a form; resolves with the answer. onpreview(data) hears what can be shown before. */
  ask(path, form, onpreview = () => {}) {
    return post(path, form, this.#hear(onpreview), this.#signal);
  }

  /** The same as a job, which keeps its answer for further downloads: {job, answer}. Whoever gets the job must forget() it some time. */
  async askLater(path, form, onpreview = () => {}) {
    const hear = this.#hear(onpreview);
    const job = await Job.submit(path, form, hear, this.#signal);
    try {
      return { job, answer: await job.answer(hear, this.#signal) };
    } catch (error) {
      job.forget();
      throw error;
    }
  }

  #hear(onpreview) {
    const runner = this.#runner;
    runner.doing("Sending");
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
