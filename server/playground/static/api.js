// The service, only through its public API.

import { EventParser } from "./events.js";
import { key, authHeaders, askForKey } from "./api_key.js";

const UNAUTHORIZED = "urn:opsin:unauthorized"; // a 401 of a proxy does not ask for a key

/** The URL of the service, including the prefix of a proxy. */
export const ROOT = new URL("../", import.meta.url);

export const at = (path) => new URL(path, ROOT).href;

/** A problem document of the service (RFC 9457); status 0 if it could not be reached. */
export class Problem extends Error {
  constructor(document, retryAfter = null) {
    super(document.detail);
    Object.assign(this, document, { retryAfter });
  }

  /** What to do about it. */
  get advice() {
    if (this.status === 0) return "Check that the gateway is running and that this computer can reach it.";
    if (this.status === 401) return "Enter a key with the button Key at the top.";
    if (this.status === 403) return "Use a key with this permission, or ask the operator of the service.";
    if (this.status === 413) return "Send a smaller input, or raise the limit that the message names.";
    if (this.status === 415 || this.status === 422) return "Correct what the message names, then run again.";
    if (this.status === 429 && this.type === "urn:opsin:key-share") return `Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
    if (this.status === 429) return `The service is busy. Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
    if (this.status === 503)
      return `The service is temporarily unavailable. Run again ${this.retryAfter ? `in ${this.retryAfter} s` : "in a moment"}.`;
    if (this.status === 504) return "Use a smaller input or fewer steps, or run again when the service is less busy.";
    return "See the service's log for this request ID.";
  }
}

/** The user stopped it. */
export class Stopped extends Error {}

const unreachable = () => new Problem({ title: "The gateway cannot be reached", status: 0, detail: `${ROOT.href} does not respond` });
const broken = () => new Problem({ title: "The connection was lost", status: 0, detail: "The response ended before it was complete" });

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

/** Sends a form (see toFormData) and follows its events until the result. hear: { sent(loaded, total), event(name, data, id) }. Rejects with Problem or Stopped. */
export async function post(path, sent, hear, signal) {
  return ending(await send("POST", path, { Accept: "text/event-stream" }, hear, signal, toFormData(sent)));
}

/** Follows the events of a URL until the result. Rejects as post does; with a Problem of status 0 if the connection was lost. */
export async function follow(path, headers, hear, signal) {
  return ending(await send("GET", path, { Accept: "text/event-stream", ...headers }, hear, signal));
}

/** Submits a form as a job. Resolves with the job as in GET /v1/jobs/{id}. Rejects as post does. */
export async function submit(path, sent, hear, signal) {
  const { request } = await send("POST", path, { Prefer: "respond-async" }, hear, signal, toFormData(sent));
  if (request.status !== 202) throw refusal(request);
  return JSON.parse(request.responseText);
}

/** Fetches a URL as the media type `type`. Resolves with a blob, rejects with Problem. */
export async function getBlob(path, type) {
  const response = await get(path, type);
  return response.blob();
}

/** Wraps work so that it runs once at a time: calls during a run share it. It may last as long as a user thinks about a key. */
export function coalesce(work) {
  let running = null;
  return () => (running ??= work().finally(() => (running = null)));
}

/** Deletes the resource of a URL, also while the page is being closed. */
export function remove(path) {
  fetch(at(path), { method: "DELETE", headers: authHeaders(), keepalive: true }).catch(() => {}); // else it expires by itself
}

/** Fetches a successful response. If a key is needed, asks the user for it. */
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

/** Does the same with sendOnce. */
async function send(method, path, headers, hear, signal, form = null) {
  for (;;) {
    const sent = key();
    const answer = await sendOnce(method, path, { ...headers, ...authHeaders() }, hear, signal, form);
    if (answer.request.status !== 401) return answer;
    const problem = refusal(answer.request);
    if (problem.type !== UNAUTHORIZED || !(await askForKey(sent, problem.detail))) return answer;
  }
}

/** Uses XMLHttpRequest, since fetch does not report upload progress. Resolves with it and the last event of a stream. */
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

/** Returns the result that ended a stream. */
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
    : { title: `Unexpected response: ${status}`, detail: "The response is not from Opsin; a proxy may have sent it", status };
  return new Problem(known, retryAfter && Number(retryAfter));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
