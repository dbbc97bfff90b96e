// Requests that are answered later. A job keeps its answer for a while, so that it can be fetched in several media types.

import { Problem, at, follow, getBlob, getJson, submit } from "./api.js";

const ATTEMPTS = 5; // to open a stream again that broke, without an event between them
const PAUSE_MS = 1000;
const kept = new Set(); // jobs that the service keeps for this page

addEventListener("pagehide", (event) => event.persisted || kept.forEach((job) => job.forget()));

export class Job {
  #path;

  constructor(id) {
    this.#path = `v1/jobs/${id}`;
    kept.add(this);
  }

  /** Sends a form. hear: as api.js's post has it. */
  static async submit(path, form, hear, signal) {
    return new Job((await submit(path, form, hear, signal)).id);
  }

  /** Follows its events to the answer, as JSON. A stream that breaks is opened again where it broke. */
  async answer(hear, signal) {
    let last = "0";
    let failures = 0;
    const heard = {
      event(name, data, id) {
        last = id;
        failures = 0;
        hear.event(name, data);
      },
    };
    for (;;) {
      try {
        const answer = await follow(`${this.#path}/events`, { "Last-Event-ID": last }, heard, signal);
        return answer.result ? await getJson(`${this.#path}/result`) : answer;
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 0 || ++failures >= ATTEMPTS) throw error;
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      }
    }
  }

  /** Its answer as `type`: a blob. */
  file(type) {
    return getBlob(`${this.#path}/result`, type);
  }

  /** Ends it, or removes what is kept of it. */
  forget() {
    kept.delete(this);
    fetch(at(this.#path), { method: "DELETE", keepalive: true }).catch(() => {}); // else it expires by itself
  }
}
