// Asynchronous jobs. A job keeps its result for a while, so that it can be fetched in several media types.

import { Problem, follow, getBlob, getJson, remove, submit } from "./api.js";
import { isJobSaved } from "./saved_job.js";

const ATTEMPTS = 5; // to reopen a lost stream without an event in between
const PAUSE_MS = 1000;
const jobs = new Set(); // that the service stores for this page

// a running job is followed again after a reload
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

  /** Follows its events until the result, as JSON. A lost stream is resumed after its last event. */
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

  /** Fetches its result as the media type `type`: a blob. */
  file(type) {
    return getBlob(`${this.#path}/result`, type);
  }

  /** Cancels it, or deletes its stored result. */
  forget() {
    jobs.delete(this);
    remove(this.#path);
  }
}
