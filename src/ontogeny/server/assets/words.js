// The words of the page: what an author reads about the model, about texts and about failures, and where texts end.

const DECISIONS = {
  rollback: decision => decision.version
    ? "The model returned to an earlier state." : "The model returned to the state before it learned anything.",
  erased: decision => "A text was erased. The model is as if it had never learned it" +
    (decision.reason.includes("learned again") ? "; it learns the texts that came later again." : "."),
  restored: () => "A saved state of the model was brought back.",
  forked: () => "The model was replaced by a copy of the one that another author taught.",
  freeze: () => "Learning was paused.",
  unfreeze: () => "Learning goes on.",
  mixed: () => "Another kind of computer goes on with the learning.",
};
const REASONS = [
  [/^held-out text would cost/, "the model would have forgotten too much of what it knew"],
  [/not finite/, "it would have damaged the model"],
  [/too short/, "it is too short"],
];
const WITHOUT_SPACES = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
const SENTENCE_END = /[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+["”’」』）]*|\n\s*\n/gu;
const ABBREVIATION = /(?:^|[\s("“])(?:\p{Lu}|Mr|Mrs|Ms|Dr|St)\.$/u;
const LONGEST_WORD = 40; // characters; longer text without a space is divided between characters
const SHOWN_WORDS = 12, SHOWN_CHARACTERS = 80;

// Why a text was not learned, as the end of a sentence.
export function reasonOf(reason) {
  const known = REASONS.find(([pattern]) => pattern.test(reason ?? ""));
  return known ? known[1] : "the model cannot read it";
}

// What has become of a text that the author gave.
export function describeOutcome(example, isLearning) {
  if (example.status === "learned") return example.share < 1 ? "Learned in part, so that the model forgets little." : "Learned.";
  if (example.status === "rejected") return `Not learned, because ${reasonOf(example.reason)}.`;
  if (example.status === "set_aside") return "Set aside: the model returned to a state without this text.";
  return isLearning ? "Waiting to be learned." : "Waiting to be learned once learning goes on.";
}

// One entry of the list of recent events.
export function describeDecision(decision, text) {
  const name = text ? `“${firstWords(text)}”` : "a text";
  if (decision.kind === "learned") return decision.share < 1 ? `Learned ${name} in part.` : `Learned ${name}.`;
  if (decision.kind === "rejected") return `Did not learn ${name}, because ${reasonOf(decision.reason)}.`;
  return DECISIONS[decision.kind]?.(decision) ?? "The model was changed.";
}

export function describeLearning(branch) {
  if (branch.mode === "frozen") return "The model does not learn. Nothing that you write changes it.";
  if (!branch.learning) return "Learning is paused. Nothing that you write changes the model for now.";
  if (branch.failure) return "The server cannot let the model learn at present, and tries again by itself. Your texts are kept.";
  return branch.shared ? "The model learns from the texts of all its users." : "The model learns from your texts, for you alone.";
}

// Whether the model learns from its author, in one or two sentences.
export function describeSaving({num_texts: count, frozen_bits_per_byte: bits, saving, verdict}) {
  const texts = count === 1 ? "1 text" : `${count} texts`, percent = number => `${(100 * number / bits).toFixed(1)} %`.replace("-", "−");
  if (saving.low === null) return `It is too early to say: there ${count === 1 ? "is" : "are"} ${texts} so far, and the answer needs about 20.`;
  const range = `between ${percent(saving.low)} and ${percent(saving.high)}`;
  if (verdict === "saves") return `Yes. What the model learned saves ${percent(saving.mean)} of the bits that your ${texts} need (${range}).`;
  if (verdict === "costs") return `No. With what it learned, the model predicts your ${texts} worse: the saving is ${percent(saving.mean)} (${range}).`;
  return `Not certain yet. What the model learned saves ${percent(saving.mean)} of the bits that your ${texts} need, but it may be ${range}.`;
}

// The first words of a text, for lists.
export function firstWords(text) {
  const line = text.trim().replace(/\s+/g, " "), words = line.split(" ").slice(0, SHOWN_WORDS).join(" ");
  const shown = words.length <= SHOWN_CHARACTERS ? words : splitCharacters(words).slice(0, SHOWN_CHARACTERS).join("");
  return shown.length < line.length ? `${shown} …` : shown;
}

// When something happened.
export function describeTime(seconds) {
  const minutes = (Date.now() / 1000 - seconds) / 60;
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${Math.floor(minutes)} min ago`;
  return new Date(seconds * 1000).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"});
}

// How much of a text there is, in words, or in characters where words are not divided by spaces.
export function describeLength(text) {
  if (WITHOUT_SPACES.test(text)) return `${splitCharacters(text.replace(/\s/g, "")).length} characters`;
  const count = text.split(/\s+/).filter(Boolean).length;
  return count === 1 ? "word" : `${count} words`;
}

// The beginning of a text up to the last end of a word; the last word may be incomplete.
export function wholeWords(text) {
  const word = /\S*$/u.exec(text)[0], before = text.slice(0, text.length - word.length);
  if (!word || (!WITHOUT_SPACES.test(word) && word.length <= LONGEST_WORD)) return before;
  return before + splitCharacters(word).slice(0, -1).join("");
}

// The index after the first sentence that ends at `start` or later, or -1.
export function findSentenceEnd(text, start) {
  for (const match of text.matchAll(SENTENCE_END)) {
    const isParagraph = !match[0].trim(), end = match.index + (isParagraph ? 0 : match[0].length);
    if (end >= start && !ABBREVIATION.test(text.slice(Math.max(0, end - 8), end))) return end;
  }
  return -1;
}

function splitCharacters(text) {
  if (!Intl.Segmenter) return Array.from(text);
  return Array.from(new Intl.Segmenter(undefined, {granularity: "grapheme"}).segment(text), part => part.segment);
}

// One sentence about a response with an error, and whether the same request may succeed soon.
export function describeFailure(status, error) {
  const code = error.code ?? "", message = error.message ?? "";
  if (status === 401) {
    return message.includes("no key") ? "This server asks for an access key. Enter the one that you were given."
      : "The server does not know this access key: it is mistyped, or it was withdrawn. Enter it again, or ask for a new one.";
  }
  if (code === "insufficient_quota") {
    return message.includes("wait to be learned")
      ? "Too many of your texts are waiting to be learned. Wait until some are learned, erase some below, or ask without letting the model learn."
      : "The server keeps no more of your texts. Erase some below, or ask without letting the model learn.";
  }
  if (code === "queue_full") return "Several of your requests are waiting already.";
  if (status === 429) return "You have asked as often as your access key allows for now.";
  if (code === "storage_unavailable") return "The server cannot save anything at the moment.";
  if (code === "time_limit") return "The server is too busy and took too long. Ask again later, or for a shorter continuation.";
  if (code === "not_ready" || code === "server_stops") return "The server is being restarted.";
  if (status === 503 || status === 502 || status === 504) return "The server cannot answer at the moment.";
  if (status === 403) return "Your access key does not permit this.";
  if (code === "model_not_found") return "The server does not have this model any more. Choose another one.";
  if (status === 404) return "This is no longer there.";
  if (code === "frozen") return "Learning is paused, so nothing was changed.";
  if (status === 413 || (error.param === "prompt" && message.includes("at most"))) return "Your story is too long for the server.";
  if (error.param === "prompt" && message.includes("empty")) return "Write a few words first.";
  if (error.param === "prompt") return "The model cannot read your story, because it holds a character that the model does not know.";
  return "The server could not do this.";
}
