// The service, through its public API alone.

import { EventParser } from "./events.js";

/** Where the service lives, whatever prefix a proxy puts before it. */
export const ROOT = new URL("../", import.meta.url);

export const at = (path) => new URL(path, ROOT).href;

/** What the service refused, as RFC 9457 tells it; status 0: it could not be reached. */
export class Problem extends Error {
  constructor(document, retryAfter = null) {
    super(document.detail);
    Object.assign(this, document, { retryAfter });
  }

  /** What to do about it. */
  get advice() {
    if (this.status === 0) return "Is the gateway running, and can this computer reach it?";
    if (this.status === 413) return "Choose a smaller one, or raise the limit that the message names.";
    if (this.status === 415 || this.status === 422) return "Change what the message names and run again.";
    if (this.status === 429) return `Others are being served. Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
    if (this.status === 503)
      return `The service has no room or no ready worker. Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
    if (this.status === 504) return "The service was too slow for the deadline: ask for less, or raise the deadline.";
    return "The service's log says more under the request id.";
  }
}

/** The user stopped it. */
export class Stopped extends Error {}

const unreachable = () => new Problem({ title: "The gateway cannot be reached", status: 0, detail: `${ROOT.href} does not answer` });
const broken = () => new Problem({ title: "The connection broke", status: 0, detail: "The answer ended before it was complete" });

export async function getJson(path) {
  let response;
  try {
    response = await fetch(at(path), { headers: { Accept: "application/json" } });
  } catch {
    throw unreachable();
  }
  const document = await response.json().catch(() => null);
  if (!response.ok) throw problemOf(document, response.status, response.headers.get("Retry-After"));
  return document;
}

/**
 * POST a form and follow its events to the answer. XMLHttpRequest, since fetch tells nothing of bytes that are sent.
 * hear: { sent(loaded, total), event(name, data) }. Rejects with Problem or Stopped.
 */
export function post(path, form, hear, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const parser = new EventParser();
    let read = 0;
    let ended = null;

    const isStream = () => (request.getResponseHeader("Content-Type") ?? "").startsWith("text/event-stream");
    const listen = () => {
      if (!isStream()) return;
      const text = request.responseText.slice(read);
      read += text.length;
      for (const { name, data } of parser.feed(text)) {
        if (name === "done" || name === "failed" || name === "cancelled") ended = { name, data };
        else hear.event(name, data);
      }
    };

    request.upload.addEventListener("progress", (event) => hear.sent(event.loaded, event.total));
    request.upload.addEventListener("load", (event) => hear.sent(event.total, event.total));
    request.addEventListener("progress", listen);
    request.addEventListener("load", () => {
      listen();
      if (ended?.name === "done") resolve(ended.data);
      else if (ended?.name === "failed") reject(new Problem(ended.data));
      else if (ended) reject(new Stopped());
      else if (isStream()) reject(broken());
      else reject(problemOf(parsed(request.responseText), request.status, request.getResponseHeader("Retry-After")));
    });
    request.addEventListener("error", () => reject(request.status ? broken() : unreachable()));
    request.addEventListener("abort", () => reject(new Stopped()));
    signal.addEventListener("abort", () => request.abort());

    request.open("POST", at(path));
    request.setRequestHeader("Accept", "text/event-stream");
    request.send(form);
  });
}

function problemOf(document, status, retryAfter) {
  const known = document?.detail
    ? document
    : { title: `The answer was ${status}`, detail: "It is no answer of Opsin: a proxy may stand between", status };
  return new Problem(known, retryAfter && Number(retryAfter));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
