// Requests that are answered later. A job keeps its answer for a while, so that it can be fetched in several media types.

import { Problem, follow, getBlob, getJson, remove, submit } from "./api.js";
import { isJobSaved } from "./saved_job.js";

const ATTEMPTS = 5; // to open a stream again that broke, without an event between them
const PAUSE_MS = 1000;
const jobs = new Set(); // that the service keeps for this page

// one that runs is followed again when the page is loaded again
addEventListener("pagehide", (event) => event.persisted || jobs.forEach((job) => isJobSaved(job.id) || job.forget()));

export class Job {
  #path;

  constructor(id) {
    this.id = id;
    this.#path = `v1/jobs/${id}`;
    jobs.add(this);
  }

  /** Sends a form. sent, hear: as api.js's post has them. */
  static async submit(path, sent, hear, signal) {
    return new Job((await submit(path, sent, hear, signal)).id);
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
    jobs.delete(this);
    remove(this.#path);
  }
}
