// What the page says about a model: whether it learns, the texts that the author gave, and what has become of them.

import {create, element} from "./elements.js";
import {readKey} from "./library.js";
import {readSaving, showSaving} from "./saving.js";
import {getJson} from "./server.js";
import {describeDecision, describeLearning, describeOutcome, describeTime, firstWords} from "./words.js";

const PAGE_LENGTH = 20, NUM_EVENTS = 8;
let numShown = PAGE_LENGTH, shownModel = null, shownTexts = "", shownEvents = "", latest = {state: ""};

element("more-texts").addEventListener("click", () => { numShown += PAGE_LENGTH; }); // before the page is refreshed

// Reads the state of a model and the texts that the author gave, latest first; the texts only if they can have changed.
export async function describeKnowledge(model) {
  if (model !== shownModel) numShown = PAGE_LENGTH;
  const path = `v1/models/${encodeURIComponent(model)}`, branch = await getJson(`${path}/branch`);
  const state = JSON.stringify([readKey(), model, numShown, branch.num_pending, branch.current_version, branch.decisions?.[0]?.number]);
  if (latest.state !== state) {
    const examples = [];
    let hasMore = branch.mode === "online";
    while (hasMore && examples.length < numShown) {
      const after = examples.length ? `&after=${examples.at(-1).number}` : "";
      const page = await getJson(`${path}/examples?order=desc&limit=${PAGE_LENGTH}${after}`);
      examples.push(...page.data);
      hasMore = page.has_more;
    }
    latest = {state, examples, hasMore, saving: branch.mode === "online" ? await readSaving(path) : null};
  }
  return {...latest, model, branch};
}

export function showKnowledge({model, branch, examples, hasMore, saving}) {
  shownModel = model;
  element("state").hidden = false;
  element("mode").textContent = branch.learning ? "learning" : branch.mode === "online" ? "paused" : "does not learn";
  element("explanation").textContent = describeLearning(branch);
  element("learning").hidden = branch.mode !== "online";
  element("no-texts").hidden = examples.length > 0;
  element("more-texts").hidden = !hasMore;
  element("rollback").hidden = !(branch.mode === "online" && branch.is_admin);
  element("rollback").disabled = branch.current_version === 0;
  showSaving(saving);
  showTexts(model, examples, branch.learning);
  showEvents(branch.decisions, examples);
  showDetails(branch);
}

// Entries whose text is unchanged stay as they are, so that an open or focused one is not lost.
function showTexts(model, examples, isLearning) {
  const state = JSON.stringify([model, isLearning, examples, Math.floor(Date.now() / 60_000)]);
  if (state === shownTexts) return;
  shownTexts = state;
  const existing = new Map([...element("texts").children].map(item => [item.id, item]));
  const items = examples.map(example => {
    const id = `text-${model}-${example.number}`, item = existing.get(id) ?? createText(id, example);
    item.querySelector(".outcome").textContent = `${describeTime(example.created_at)} · ${describeOutcome(example, isLearning)}`;
    return item;
  });
  for (const item of existing.values()) if (!items.includes(item)) item.remove();
  items.forEach((item, index) => {
    const present = element("texts").children[index];
    if (present !== item) element("texts").insertBefore(item, present ?? null);
  });
}

function createText(id, example) {
  const beginning = firstWords(example.text), isShort = !beginning.endsWith(" …");
  const text = isShort ? create("div", {css: "text", text: beginning})
    : create("details", {children: [create("summary", {css: "text", text: beginning}), create("p", {css: "text", text: example.text})]});
  const erase = create("button", {text: "Erase"});
  erase.setAttribute("aria-label", `Erase “${beginning}”`);
  erase.addEventListener("click", () => element("texts").dispatchEvent(new CustomEvent("erase", {detail: example})));
  const item = create("li", {children: [create("div", {children: [text, create("div", {css: "outcome small"})]}), erase]});
  item.id = id;
  return item;
}

function showEvents(decisions, examples) {
  const texts = new Map(examples.map(example => [example.number, example.text]));
  const sentences = decisions.slice(0, NUM_EVENTS).map(
    decision => `${describeDecision(decision, texts.get(decision.example))} (${describeTime(decision.created_at)})`);
  const state = sentences.join("\n");
  element("recent").hidden = !sentences.length;
  if (state === shownEvents) return;
  shownEvents = state;
  element("events").replaceChildren(...sentences.map(text => create("li", {text})));
}

function detail(name, value) {
  return create("div", {children: [create("dt", {text: name}), create("dd", {text: value})]});
}

function showDetails(branch) {
  const details = [
    detail("change of the weights", `${(100 * branch.weight_distance).toFixed(2)} %`),
    detail("version", branch.current_version),
  ];
  if (branch.mode === "online") {
    const increase = branch.held_out_loss - branch.trained_held_out_loss;
    const sign = increase >= 0 ? "+" : "−";
    details.push(detail("forgetting", `${sign}${Math.abs(increase).toFixed(4)} (limit +${branch.max_forgetting}) nats per token`));
    details.push(detail("waiting examples", branch.num_pending));
    if (branch.failure) details.push(detail("failure", branch.failure));
  }
  const failure = element("technical").dataset.failure;
  if (failure) details.push(detail("last failed request", failure));
  element("details").replaceChildren(...details);
  element("log").hidden = !branch.decisions.length;
  element("decisions").replaceChildren(...branch.decisions.slice(0, NUM_EVENTS).map(decision => {
    const cells = [decision.kind, decision.example ?? "", decision.version ?? "", decision.reason];
    return create("tr", {children: cells.map(text => create("td", {text}))});
  }));
}
