// The service, through its public API alone.

import { EventParser } from "./events.js";
import { key, authHeaders, askForKey } from "./api_key.js";

const UNAUTHORIZED = "urn:opsin:unauthorized"; // a 401 of a proxy asks for something else than a key

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
    if (this.status === 401) return "The button Key in the head takes one.";
    if (this.status === 403) return "Use a key that may, or ask whoever runs the service.";
    if (this.status === 413) return "Choose a smaller one, or raise the limit that the message names.";
    if (this.status === 415 || this.status === 422) return "Change what the message names and run again.";
    if (this.status === 429 && this.type === "urn:opsin:key-share") return `Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
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
  const response = await get(path, "application/json");
  return response.json().catch(() => null);
}

/** sent: {parts: [[part, blob, name], …], options: {name: value, or a list of them}}. */
function toFormData({ parts, options }) {
  const form = new FormData();
  for (const [part, blob, name] of parts) form.append(part, blob, name);
  for (const [name, value] of Object.entries(options)) for (const one of [value].flat()) form.append(name, one);
  return form;
}

/** A form (as toFormData has it), and its events to the answer. hear: { sent(loaded, total), event(name, data, id) }. Rejects with Problem or Stopped. */
export async function post(path, sent, hear, signal) {
  return ending(await send("POST", path, { Accept: "text/event-stream" }, hear, signal, toFormData(sent)));
}

/** The events of a URL to the answer. Rejects as post does; with a Problem of status 0 where the stream broke. */
export async function follow(path, headers, hear, signal) {
  return ending(await send("GET", path, { Accept: "text/event-stream", ...headers }, hear, signal));
}

/** A form that is answered later: the job as GET /v1/jobs/{id} tells it. Rejects as post does. */
export async function submit(path, sent, hear, signal) {
  const { request } = await send("POST", path, { Prefer: "respond-async" }, hear, signal, toFormData(sent));
  if (request.status !== 202) throw refusal(request);
  return JSON.parse(request.responseText);
}

/** What a URL gives as `type`, a blob. Rejects with Problem. */
export async function getBlob(path, type) {
  const response = await get(path, type);
  return response.blob();
}

/** The same work, but once at a time: whoever asks meanwhile waits for the one that runs. It may last as long as a user thinks about a key. */
export function coalesce(work) {
  let running = null;
  return () => (running ??= work().finally(() => (running = null)));
}

/** Removes what a URL stands for, also when the page goes. */
export function remove(path) {
  fetch(at(path), { method: "DELETE", headers: authHeaders(), keepalive: true }).catch(() => {}); // else it expires by itself
}

/** A response that is no refusal; where a key is needed, once the user has given one. */
async function get(path, type) {
  for (;;) {
    const sent = key();
    let response;
    try {
      response = await fetch(at(path), { headers: { Accept: type, ...authHeaders() } });
    } catch {
      throw unreachable();
    }
    if (response.ok) return response;
    const problem = problemOf(parsed(await response.text()), response.status, response.headers.get("Retry-After"));
    if (problem.type !== UNAUTHORIZED || !(await askForKey(sent, problem.detail))) throw problem;
  }
}

/** The same of what sendOnce sends. */
async function send(method, path, headers, hear, signal, form = null) {
  for (;;) {
    const sent = key();
    const answer = await sendOnce(method, path, { ...headers, ...authHeaders() }, hear, signal, form);
    if (answer.request.status !== 401) return answer;
    const problem = refusal(answer.request);
    if (problem.type !== UNAUTHORIZED || !(await askForKey(sent, problem.detail))) return answer;
  }
}

/** XMLHttpRequest, since fetch tells nothing of bytes that are sent. Resolves with it and, of a stream, its last event. */
function sendOnce(method, path, headers, hear, signal, form) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(new Stopped());
    const request = new XMLHttpRequest();
    const parser = new EventParser();
    let read = 0;
    let last = null;

    const listen = () => {
      if (!isStream(request)) return;
      const text = request.responseText.slice(read);
      read += text.length;
      for (const { id, name, data } of parser.feed(text)) {
        if (name === "done" || name === "failed" || name === "cancelled") last = { name, data };
        else hear.event(name, data, id);
      }
    };

    if (form) {
      request.upload.addEventListener("progress", (event) => hear.sent(event.loaded, event.total));
      request.upload.addEventListener("load", (event) => hear.sent(event.total, event.total));
    }
    request.addEventListener("progress", listen);
    request.addEventListener("load", () => {
      listen();
      resolve({ request, last });
    });
    request.addEventListener("error", () => reject(request.status ? broken() : unreachable()));
    request.addEventListener("abort", () => reject(new Stopped()));
    signal.addEventListener("abort", () => request.abort());

    request.open(method, at(path));
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.send(form);
  });
}

function isStream(request) {
  return (request.getResponseHeader("Content-Type") ?? "").startsWith("text/event-stream");
}

/** The answer that ended a stream. */
function ending({ request, last }) {
  if (last?.name === "done") return last.data;
  if (last?.name === "failed") throw new Problem(last.data);
  if (last) throw new Stopped();
  throw isStream(request) ? broken() : refusal(request);
}

function refusal(request) {
  return problemOf(parsed(request.responseText), request.status, request.getResponseHeader("Retry-After"));
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
