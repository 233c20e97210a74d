// The page on which an author continues a story with a model.

import {Continuation, reserveFor} from "./continuation.js";
import * as library from "./library.js";
import {Failure, getJson, isAbort, postJson, readChoices, repeat, send} from "./server.js";
import {describeKnowledge, showKnowledge} from "./knowledge.js";
import {element} from "./elements.js";
import {describeLength, firstWords} from "./words.js";

const MAX_CHARACTERS = 1_000_000; // of a prompt
const MIN_TOKENS = 16; // of a continuation: a model that ends the story at once offers nothing to choose
const NOT_KEPT = "This browser does not keep your story: copy or download it before you close the window.";
const REFRESH_INTERVAL = 5000, VISIBLE_PART_DELAY = 800; // milliseconds
const stories = new library.Library();
let models = [], generation = null, continuations = [], undone = [], done = [], measured = null, visibleTimer = 0, visibleStart = 0;
let isKept = true; // whether the browser has stored the story of this window

const story = element("story");
const model = () => models.find(other => other.id === element("model").value);

// Tells the author something; the source says what may take it back.
function tell(text, source = "author", isFailure = false) {
  element("message").textContent = text;
  element("message").classList.toggle("failure", isFailure);
  element("message").dataset.source = text ? source : "";
}

// Takes back what a repeated look at the server said, but nothing that answers the author.
function withdraw(source) { if (element("message").dataset.source === source) tell(""); }

function report(failure, source) {
  if (isAbort(failure)) return;
  if (!(failure instanceof Failure)) throw failure;
  element("technical").dataset.failure = failure.details;
  if (failure.status === 401) {
    element("state").hidden = true; // it may belong to another key
    return askForKey(failure.message);
  }
  tell(failure.message, source, true);
}

// Access key

function askForKey(text) {
  const wasHidden = element("key-form").hidden;
  element("key-form").hidden = false; element("change-key").hidden = true;
  element("key-message").textContent = text;
  element("remember").checked = library.isKeyRemembered();
  if (wasHidden && document.activeElement !== story) element("key").focus();
}

async function useKey() {
  library.writeKey(element("key").value.trim(), element("remember").checked);
  element("use-key").disabled = true;
  if (await loadModels() && element("key-form").hidden) story.focus();
  element("use-key").disabled = false;
}

function closeKeyForm() {
  element("key-form").hidden = true; element("change-key").hidden = !library.readKey();
  element("key").value = "";
}

// Models and settings

function saveSettings() {
  library.writeSettings({
    model: element("model").value, length: element("length").value, style: element("style").value, learn: element("learn").checked,
  });
}

function restoreSettings() {
  const settings = library.readSettings();
  for (const name of ["length", "style"]) {
    if ([...element(name).options].some(option => option.value === settings[name])) element(name).value = settings[name];
  }
  element("learn").checked = settings.learn ?? true;
}

async function loadModels() {
  try {
    models = (await getJson("v1/models")).data.filter(other => other.ontogeny.kind === "language");
  } catch (failure) { report(failure, "refresh"); return false; }
  const selected = element("model").value || library.readSettings().model;
  element("model").replaceChildren(...models.map(({id}) => new Option(id, id, false, id === selected)));
  closeKeyForm();
  if (models.length) withdraw("refresh"); else tell("This server has no model that writes texts.", "refresh");
  await refresh();
  return true;
}

async function refresh() {
  if (!model()) return;
  element("learn-choice").hidden = model().ontogeny.mode !== "online";
  try {
    const {id} = model(), knowledge = await describeKnowledge(id);
    if (model()?.id === id) showKnowledge(knowledge);
    withdraw("refresh");
  } catch (failure) { report(failure, "refresh"); }
  showVisiblePart();
}

// Stories

const describeStory = text => firstWords(text.slice(0, 1000)) || "A new story";

function listStories() {
  const others = stories.list().filter(other => other.id !== stories.id && other.text.trim());
  const options = [{id: stories.id, text: story.value}, ...others].map(
    ({id, text}) => new Option(describeStory(text), id, false, id === stories.id));
  element("stories").replaceChildren(...options);
}

function save() {
  const outcome = stories.save(story.value);
  isKept = outcome !== "failed";
  if (!isKept || !library.isLasting) tell(NOT_KEPT, "storage", true); else withdraw("storage");
  if (outcome === "copied") {
    listStories();
    tell("This story was changed in another window too. Both are kept: this one is now a story of its own.");
  }
  element("stories").options[0].textContent = describeStory(story.value);
  showVisiblePart();
}

function change(text) {
  undone = []; done.push(story.value);
  story.value = text;
  save(); showSteps();
}

function step(from, to) {
  if (!from.length) return;
  to.push(story.value);
  story.value = from.pop();
  save(); showSteps(); story.focus();
}

function showSteps() { element("undo").disabled = !done.length; element("redo").disabled = !undone.length; }

function openStory(text) {
  stop();
  generation = null; // what still arrives belongs to the other story
  story.value = text; done = []; undone = []; measured = null;
  showContinuations([]); showGeneration();
  listStories(); showSteps(); showVisiblePart();
  story.focus();
}

function mayLeave() {
  const isLeft = isKept || confirm("The browser has no room for this story, so it will be lost. Leave it?");
  if (!isLeft) listStories(); else isKept = true;
  return isLeft;
}

function startStory() {
  if (!mayLeave()) return;
  const isEmpty = !story.value.trim();
  openStory(stories.startNew());
  tell(isEmpty ? "" : "The earlier story is kept under “Your stories”.");
}

async function copyStory() {
  try { await navigator.clipboard.writeText(story.value); } catch {
    story.select();
    document.execCommand("copy"); // where the browser offers the clipboard to encrypted pages only
  }
  tell("The story is copied.");
}

function downloadStory() {
  const link = document.createElement("a"), url = URL.createObjectURL(new Blob([story.value], {type: "text/plain"}));
  const name = firstWords(story.value).replace(/[^\p{L}\p{N} ]/gu, "").trim().slice(0, 40) || "story";
  link.href = url; link.download = `${name}.txt`; link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function deleteStory() {
  const name = firstWords(story.value);
  if (name && !confirm(`Delete the story “${name}” from this browser?\n\nWhat the model has learned from it stays learned; erase it below.`)) return;
  openStory(stories.remove());
}

// The part of the story that the model reads: measured by the server, then moved along while the author writes.

function showVisiblePart() {
  clearTimeout(visibleTimer);
  const length = model()?.ontogeny.context_length, text = story.value;
  if (!length || new TextEncoder().encode(text).length <= length) { element("visible-part").hidden = true; return; }
  if (measured?.model !== model().id) { visibleTimer = setTimeout(() => measure(length), VISIBLE_PART_DELAY); return; }
  if (Math.abs(text.length - measured.length) > measured.size / 2) visibleTimer = setTimeout(() => measure(length), VISIBLE_PART_DELAY);
  const start = Math.max(0, text.length - measured.size), space = start ? text.slice(start).search(/\s\S/u) : -1;
  visibleStart = space >= 0 && space < measured.size / 2 ? start + space + 1 : start;
  const part = text.slice(visibleStart);
  element("visible-part").hidden = !visibleStart;
  element("visible-words").textContent =
    `The model reads only the end of your story: about the last ${describeLength(part)}, from “${firstWords(part).split(" ").slice(0, 5).join(" ")}” on.`;
}

function selectVisiblePart() {
  story.setSelectionRange(visibleStart, visibleStart);
  story.blur(); story.focus(); // so that the browser scrolls to the beginning of the part
  story.setSelectionRange(visibleStart, story.value.length);
}

async function measure(length) {
  const {id} = model(), text = story.value, tail = text.slice(-16 * length).replace(/^[\uDC00-\uDFFF]/, "");
  try {
    const {tokens} = await postJson("tokenize", {model: id, prompt: tail});
    const {prompt} = await postJson("detokenize", {model: id, tokens: tokens.slice(-length)});
    measured = {model: id, length: text.length, size: prompt.replace(/^\uFFFD+/, "").length};
  } catch (failure) { // too many requests, for example; the next change tries again
    if (!(failure instanceof Failure)) throw failure;
    return;
  }
  if (model()?.id === id) showVisiblePart();
}

// Continuations

function showContinuations(texts) {
  continuations = texts;
  element("continuations").replaceChildren(...texts.map((text, index) => {
    const item = document.createElement("li"), paragraph = document.createElement("p"), button = document.createElement("button");
    item.className = "continuation"; paragraph.textContent = text;
    button.textContent = `Choose this one (${index + 1})`; button.disabled = !text || generation !== null;
    button.addEventListener("click", () => choose(index));
    item.append(paragraph, button);
    return item;
  }));
}

function keepContinuations() { library.writeOfTab("continuations", {story: stories.id, texts: continuations}); }

// Text that is sent to be learned has a name, so that the server learns it once although it is sent again.
function identify(body) {
  const previous = library.readOfTab("request");
  const request = previous?.body === body ? previous : {body, name: library.newId()};
  library.writeOfTab("request", request);
  return {"Idempotency-Key": request.name};
}

function makeRequest() {
  const text = story.value, isLong = text.length > MAX_CHARACTERS, length = Number(element("length").value);
  const isLearned = !element("learn-choice").hidden && element("learn").checked && !isLong;
  if (isLong && element("learn").checked) tell("Your story is too long to be learned at once, so the model only continues it.");
  const body = JSON.stringify({
    model: model().id, prompt: text.slice(-MAX_CHARACTERS).replace(/^[\uDC00-\uDFFF]/, ""), n: 3, stream: true,
    min_tokens: MIN_TOKENS, max_tokens: length + reserveFor(length), temperature: Number(element("style").value), top_p: 0.95, learn: isLearned,
  });
  return {body, headers: isLearned ? identify(body) : {}, length};
}

async function generate() {
  if (generation) return;
  if (!model() && !await loadModels() && !element("key-form").hidden) element("key").focus();
  if (!model()) return;
  tell("");
  const {body, headers, length} = makeRequest(), abort = generation = new AbortController();
  const arriving = [1, 2, 3].map(() => new Continuation(length));
  showGeneration();
  for (const button of element("continuations").querySelectorAll("button")) button.disabled = true;
  let hasStarted = false;
  const receive = choice => {
    if (generation !== abort) return;
    if (!hasStarted) { hasStarted = true; showContinuations(["", "", ""]); withdraw("waiting"); }
    const arrived = arriving[choice.index];
    arrived.add(choice.text, choice.finish_reason);
    continuations[choice.index] = arrived.shown;
    element("continuations").children[choice.index].firstChild.textContent = arrived.shown;
    if (arriving.every(other => other.isComplete)) abort.abort();
  };
  try {
    await repeat(async () => {
      const response = await send("v1/completions", {method: "POST", body, headers, signal: abort.signal});
      await readChoices(response, receive).catch(failure => {
        if (hasStarted) failure.isTemporary = false; // what has arrived is kept
        throw failure;
      });
    }, abort.signal, failure => tell(`${failure.message} Your story is safe. Trying again in ${failure.seconds} s …`, "waiting", true));
  } catch (failure) {
    if (isAbort(failure)) withdraw("waiting"); else if (generation === abort) report(failure, "author");
  } finally {
    if (hasStarted) library.writeOfTab("request", null);
    if (generation === abort) {
      generation = null;
      showGeneration(); showContinuations(continuations); keepContinuations();
      if (hasStarted) element("announcement").textContent = "The continuations are written.";
    }
  }
  refresh();
}

function showGeneration() {
  element("generate").disabled = generation !== null; element("stop").disabled = generation === null;
  element("announcement").textContent = "";
}

function choose(index) {
  if (!continuations[index] || generation) return;
  change(story.value + continuations[index]);
  showContinuations([]); keepContinuations();
  story.scrollTop = story.scrollHeight;
  story.focus();
}

function stop() { generation?.abort(); }

async function rollBack() {
  if (!confirm("Return to the model as it was before it learned anything? Everything that it learned since is set aside.")) return;
  await postJson(`v1/models/${encodeURIComponent(model().id)}/rollback`, {version: 0})
    .catch(failure => report(failure, "author"));
  refresh();
}

async function eraseText(example) {
  const question = `Erase “${firstWords(example.text)}”?\n\nThe server deletes this text, and the model becomes as if it had never ` +
    "learned it. This cannot be undone.";
  if (!confirm(question)) return;
  try {
    await send(`v1/models/${encodeURIComponent(model().id)}/examples/${example.number}`, {method: "DELETE"});
    const isInStory = element("learn").checked && story.value.includes(example.text.trim());
    if (isInStory) { element("learn").checked = false; saveSettings(); }
    tell(isInStory ? "The text is erased. Your story still holds it, so the model does not learn from your story until you mark “Let the model learn” again."
      : "The text is erased.");
    element("texts-title").focus(); // the button that had the focus goes
  } catch (failure) { report(failure, "author"); }
  await refresh();
}

function listen(id, event, handler) { element(id).addEventListener(event, handler); }

listen("generate", "click", generate);
listen("stop", "click", stop);
listen("undo", "click", () => step(done, undone));
listen("redo", "click", () => step(undone, done));
listen("rollback", "click", rollBack);
listen("new", "click", startStory);
listen("copy", "click", copyStory);
listen("download", "click", downloadStory);
listen("delete", "click", deleteStory);
listen("stories", "change", () => { if (mayLeave()) openStory(stories.open(element("stories").value)); });
listen("story", "input", save);
listen("show-visible", "click", selectVisiblePart);
listen("change-key", "click", () => askForKey("Enter the access key that this page should use."));
listen("key-form", "submit", event => { event.preventDefault(); useKey(); });
listen("texts", "erase", event => eraseText(event.detail));
for (const id of ["model", "length", "style", "learn"]) listen(id, "change", saveSettings);
listen("model", "change", refresh);
listen("more-texts", "click", refresh);
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
  if (event.key === "Escape") stop();
  const digit = /^(?:Digit|Numpad)([123])$/.exec(event.code);
  if (digit && event.altKey && !event.ctrlKey) { event.preventDefault(); choose(Number(digit[1]) - 1); }
});
window.addEventListener("pagehide", keepContinuations);
window.addEventListener("beforeunload", event => { if ((!isKept || !library.isLasting) && story.value.trim()) event.preventDefault(); });
stories.onForeignChange(text => {
  story.value = text;
  listStories(); showVisiblePart();
  tell("This story is being changed in another window; this window shows the same text.");
});

restoreSettings();
story.value = stories.text;
const kept = library.readOfTab("continuations");
if (kept?.story === stories.id) showContinuations(kept.texts);
if (!library.isLasting) tell(NOT_KEPT, "storage", true);
listStories();
loadModels();
setInterval(() => { if (!generation && !document.hidden) (models.length ? refresh() : loadModels()); }, REFRESH_INTERVAL);
