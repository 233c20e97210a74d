// Requests to the server, their failures as sentences, and their repetition while the server cannot answer.

import {readKey} from "./library.js";
import {describeFailure} from "./words.js";

const RETRY_SECONDS = 3, MAX_RETRY_SECONDS = 30, PATIENCE = 300; // seconds
const TEMPORARY_STATUSES = [429, 502, 503, 504], FINAL_CODES = ["insufficient_quota", "time_limit"];

// A failed request. The message is a sentence for an author; `details` are the words of the server, for operators.
export class Failure extends Error {
  constructor(message, {status = 0, isTemporary = false, seconds = RETRY_SECONDS, details = ""} = {}) {
    super(message);
    Object.assign(this, {status, isTemporary, seconds, details});
  }
}

export function connectionFailure(error) {
  const message = navigator.onLine === false ? "You are offline." : "The server cannot be reached at the moment.";
  return new Failure(message, {isTemporary: true, details: String(error)});
}

export const isAbort = error => error.name === "AbortError";

// Sends a request and returns the response; throws `Failure`, or an AbortError.
export async function send(path, {method = "GET", body, headers = {}, signal} = {}) {
  const key = readKey();
  const credentials = key ? {Authorization: `Bearer ${key}`} : {};
  const type = body === undefined ? {} : {"Content-Type": "application/json"};
  let response;
  try {
    response = await fetch(path, {method, body, signal, headers: {...type, ...credentials, ...headers}});
  } catch (error) { throw isAbort(error) ? error : connectionFailure(error); }
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error ?? {};
  throw failureOf(response.status, error, Number(response.headers.get("Retry-After")));
}

function failureOf(status, error, seconds) {
  const isTemporary = TEMPORARY_STATUSES.includes(status) && !FINAL_CODES.includes(error.code);
  return new Failure(describeFailure(status, error), {
    status, isTemporary, seconds: Math.min(seconds || RETRY_SECONDS, MAX_RETRY_SECONDS), details: `${status} ${error.message ?? ""}`,
  });
}

export async function getJson(path) { return (await send(path)).json(); }
export async function postJson(path, body, options = {}) {
  return (await send(path, {method: "POST", body: JSON.stringify(body), ...options})).json();
}

// Repeats a request until it succeeds or fails for good; tells `onWait` why and for how many seconds it waits.
export async function repeat(attempt, signal, onWait) {
  for (const start = performance.now();;) {
    try { return await attempt(); } catch (failure) {
      if (!failure.isTemporary || performance.now() - start > 1000 * PATIENCE) throw failure;
      onWait(failure);
      await wait(failure.seconds, signal);
    }
  }
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { finish(); reject(new DOMException("stopped", "AbortError")); };
    const end = () => { finish(); resolve(); };
    const timer = setTimeout(end, 1000 * seconds);
    const finish = () => { clearTimeout(timer); signal.removeEventListener("abort", stop); window.removeEventListener("online", end); };
    signal.addEventListener("abort", stop);
    window.addEventListener("online", end);
  });
}

// Calls a function with every choice of a stream of completions; throws `Failure` if the stream ends early.
export async function readChoices(response, onChoice) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read().catch(error => { throw isAbort(error) ? error : connectionFailure(error); });
    if (done) throw connectionFailure("the stream ended early");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw failureOf(503, content.error, RETRY_SECONDS);
      for (const choice of content.choices) onChoice(choice);
    }
  }
}
