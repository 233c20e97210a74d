// One continuation while it arrives. What is shown only grows, and ends with a word, or with a sentence if one ends soon
// after the requested length.

import {findSentenceEnd, wholeWords} from "./words.js";

// How much more than the requested length is generated, so that the last sentence can end.
export const reserveFor = length => Math.max(48, Math.round(length * 0.3));

export class Continuation {
  #received = "";
  #count = 0;

  constructor(length) { this.length = length; this.shown = ""; this.isComplete = false; }

  // Adds what has arrived; `reason` is "stop" if the text ends by itself, "length" if it was cut, null if it goes on.
  add(text, reason) {
    if (this.isComplete) return;
    this.#received += text;
    this.#count += 1;
    const visible = wholeWords(this.#received).trimEnd();
    if (reason === "stop") {
      this.shown = this.#received.trimEnd();
    } else if (this.#count < this.length || !this.shown) {
      this.shown = visible;
    } else {
      const end = findSentenceEnd(this.#received, this.shown.length);
      if (end >= 0) { this.shown = this.#received.slice(0, end); this.isComplete = true; }
    }
    this.isComplete ||= Boolean(reason);
  }
}
